"""Slots: which worker gets which slot, and what a slot contains after its worker has ended."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from gunicorn_flask_telemetry import slots
from tests.stacks import ROOT

ENVIRONMENT = {"PYTHONPATH": str(ROOT / "flask" / "telemetry")}


@pytest.fixture
def slot(tmp_path: Path) -> slots.Slot:
    return slots.claim(tmp_path, taken=(), threads=2)


def reading(directory: Path, number: int = 1) -> slots.Reading:
    return slots.read(directory / f"worker_{number}.slot")


def test_claim_gives_the_lowest_free_slot(tmp_path: Path, slot: slots.Slot) -> None:
    assert slot.number == 1
    assert slots.claim(tmp_path, {1}, 2).number == 2
    assert slots.claim(tmp_path, {1, 3}, 2).number == 2


def test_each_thread_has_its_own_floats(slot: slots.Slot) -> None:
    assert slot.next_thread() != slot.next_thread()
    with pytest.raises(IndexError):
        slot.next_thread()


def test_request_in_flight_counts_as_busy_time(tmp_path: Path, slot: slots.Slot) -> None:
    busy = slot.next_thread()
    slot.values[busy] -= time.monotonic() - 5
    assert reading(tmp_path).in_flight == 1
    assert reading(tmp_path).busy_seconds == pytest.approx(5, abs=0.5)
    slot.values[busy] += time.monotonic()
    assert reading(tmp_path).in_flight == 0
    assert reading(tmp_path).busy_seconds == pytest.approx(5, abs=0.5)


def test_request_of_a_killed_worker_ends_and_its_time_counts(
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
    slots.claim(tmp_path, (), 2)
    assert (reading(tmp_path).in_flight, reading(tmp_path).requests) == (0, 7)


def test_slot_grows_for_more_threads(tmp_path: Path, slot: slots.Slot) -> None:
    slot.values[slot.next_thread() + slots.REQUESTS] += 7
    slot.release(aborted=False, cpu_seconds=0)
    larger = slots.claim(tmp_path, (), threads=8)
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
    slots.claim(tmp_path, (), 2).release(aborted=False, cpu_seconds=0)
    assert sum(reading(tmp_path).exits.values()) == 2


def test_process_that_the_application_forks_writes_to_its_own_files(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from gunicorn_flask_telemetry import slots

slots.claim(Path({str(tmp_path)!r}), (), 2).occupy()
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
