"""Slots: who gets which, and what they hold after a worker is gone."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gunicorn_flask_telemetry import slots
from tests.stacks import ROOT

ENVIRONMENT = {"PYTHONPATH": str(ROOT / "flask")}


@pytest.fixture
def slot(tmp_path: Path) -> slots.Slot:
    return slots.claim(tmp_path, threads=2)


def reading(directory: Path, number: int = 1) -> slots.Reading:
    return slots.read(directory / f"worker_{number}.slot")


def test_claim_gives_the_lowest_free_slot(tmp_path: Path, slot: slots.Slot) -> None:
    second, third = slots.claim(tmp_path, 2), slots.claim(tmp_path, 2)
    assert (slot.number, second.number, third.number) == (1, 2, 3)
    second.release(aborted=False, cpu_seconds=0)
    assert slots.claim(tmp_path, 2).number == 2


@pytest.fixture
def forked(slot: slots.Slot) -> Iterator[None]:  # noqa: ARG001  it is open when this forks
    """Have the slot's file open in another process, as a worker that was forked has."""
    holding, release = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(release)
        os.read(holding, 1)
        os._exit(0)
    yield
    os.close(release)
    os.waitpid(pid, 0)


@pytest.mark.usefixtures("forked")
def test_slot_is_its_workers_when_the_arbiter_is_gone(tmp_path: Path, slot: slots.Slot) -> None:
    slot.close()
    assert slots.claim(tmp_path, 2).number == 2


@pytest.mark.usefixtures("forked")
def test_released_slot_is_free_whoever_has_the_file(tmp_path: Path, slot: slots.Slot) -> None:
    slot.release(aborted=False, cpu_seconds=0)
    assert slots.claim(tmp_path, 2).number == 1


def test_threads_have_places_of_their_own(slot: slots.Slot) -> None:
    assert slot.next_thread() != slot.next_thread()
    with pytest.raises(IndexError):
        slot.next_thread()


def test_request_in_flight_is_busy_time_already(tmp_path: Path, slot: slots.Slot) -> None:
    busy = slot.next_thread()
    slot.values[busy] -= time.monotonic() - 5
    assert reading(tmp_path).in_flight == 1
    assert reading(tmp_path).busy_seconds == pytest.approx(5, abs=0.5)
    slot.values[busy] += time.monotonic()
    assert reading(tmp_path).in_flight == 0
    assert reading(tmp_path).busy_seconds == pytest.approx(5, abs=0.5)


def test_killed_workers_request_is_over_and_its_time_counted(
    tmp_path: Path, slot: slots.Slot
) -> None:
    slot.values[slot.next_thread()] -= time.monotonic() - 5
    slot.release(aborted=False, cpu_seconds=1.5)
    after = reading(tmp_path)
    assert (after.in_flight, after.pid, after.cpu_seconds) == (0, 0, 1.5)
    assert after.busy_seconds == pytest.approx(5, abs=0.5)


def test_successor_of_a_worker_that_was_never_released_starts_idle(
    tmp_path: Path, slot: slots.Slot
) -> None:
    slot.values[slot.next_thread() + slots.REQUESTS] += 7
    slot.values[slot.next_thread()] -= time.monotonic() - 5
    slot.close()
    slots.claim(tmp_path, 2)
    assert (reading(tmp_path).in_flight, reading(tmp_path).requests) == (0, 7)


def test_more_threads_than_before_find_room(tmp_path: Path, slot: slots.Slot) -> None:
    slot.values[slot.next_thread() + slots.REQUESTS] += 7
    slot.release(aborted=False, cpu_seconds=0)
    larger = slots.claim(tmp_path, threads=8)
    assert len({larger.next_thread() for _ in range(8)}) == 8
    assert reading(tmp_path).requests == 7


@pytest.mark.parametrize(
    ("left", "aborted", "reason"),
    [
        (True, False, "exit"),
        (False, True, "timeout"),
        (True, True, "timeout"),
        (False, False, "signal"),
    ],
)
def test_exit_is_counted_by_its_reason(
    tmp_path: Path, slot: slots.Slot, left: bool, aborted: bool, reason: str
) -> None:
    if left:
        slot.leave()
    slot.release(aborted=aborted, cpu_seconds=0)
    assert reading(tmp_path).exits == {"exit": 0, "timeout": 0, "signal": 0} | {reason: 1}
    slots.claim(tmp_path, 2).release(aborted=False, cpu_seconds=0)
    assert sum(reading(tmp_path).exits.values()) == 2


def test_process_that_the_application_forks_has_files_of_its_own(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from gunicorn_flask_telemetry import slots

slots.claim(Path({str(tmp_path)!r}), 2).occupy()
child = os.fork()
if not child:
    os._exit(slots.current() != f"1-{{os.getpid()}}")
assert os.waitpid(child, 0)[1] == 0
assert slots.current() == 1
"""
    subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=True, timeout=30)


def test_directory_made_for_a_start_that_fails_is_removed() -> None:
    program = """
from gunicorn.config import Config
from gunicorn_flask_telemetry.state import State

print(State(Config()).directory)
raise SystemExit(1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )
    directory = Path(done.stdout.strip())
    assert (done.returncode, directory.name.startswith("gunicorn-")) == (1, True)
    assert not directory.exists()
