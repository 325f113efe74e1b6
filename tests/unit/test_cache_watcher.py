"""nginx/cache-watcher.sh, which says whether nginx's cache can be written."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import checks
from local.settings import ROOT
from tests.stacks import wait_until

SCRIPT = ROOT / "nginx" / "cache-watcher.sh"
TOLD_WITHIN = 10  # seconds


class Watched:
    """The folders of a cache and of its state."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "responses"
        self.states = folder / "states"
        self.states.mkdir()

    @property
    def state(self) -> list[str]:
        """The names of the state's files."""
        return sorted(path.name for path in self.states.iterdir())

    def wait_for(self, state: str) -> None:
        wait_until(lambda: self.state == [f"responses.cache-{state}"], TOLD_WITHIN, state)

    def problem(self) -> str:
        """What ./stack status says."""
        command = ["sh", "-c", checks.CACHE_SCRIPT]
        env = os.environ | {"NGINX_METRICS_DIR": str(self.states)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return checks.cache_problem(done.stdout)


def entry(folder: Path, number: int, age: float) -> Path:
    path = folder / f"{number:032x}"
    path.touch()
    os.utime(path, times=(time.time() - age,) * 2)
    return path


@pytest.fixture
def unwatched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


@pytest.fixture
def watched(unwatched: Watched) -> Iterator[Watched]:
    """A cache with two entries, and a watcher that has begun."""
    unwatched.cache.mkdir()
    for number, age in enumerate((3500, 3700)):
        entry(unwatched.cache, number, age)
    command = ["sh", SCRIPT, unwatched.cache, unwatched.states / "responses"]
    with subprocess.Popen(command, start_new_session=True) as watcher:
        try:
            unwatched.wait_for("on")
            yield unwatched
        finally:
            os.killpg(watcher.pid, 15)


def test_a_cache_that_cannot_be_written_is_off_until_it_can(watched: Watched) -> None:
    assert watched.problem() == ""
    elsewhere = watched.cache.rename(watched.cache.with_name("elsewhere"))
    watched.cache.touch()
    watched.wait_for("off")
    assert "nginx does not use its cache" in watched.problem()
    watched.cache.unlink()
    elsewhere.rename(watched.cache)
    watched.wait_for("on")
    assert watched.problem() == ""


def test_the_time_of_the_state_is_that_of_the_last_attempt(watched: Watched) -> None:
    file = watched.states / "responses.cache-on"
    first = file.stat().st_mtime_ns
    wait_until(lambda: file.stat().st_mtime_ns > first, TOLD_WITHIN, "another attempt")


def test_a_removed_folder_is_made_again(watched: Watched) -> None:
    for path in watched.cache.iterdir():
        path.unlink()
    watched.cache.rmdir()
    wait_until(watched.cache.is_dir, TOLD_WITHIN, "the folder")


def test_an_entry_that_was_not_refreshed_for_an_hour_is_removed(watched: Watched) -> None:
    wait_until(lambda: len(list(watched.cache.glob("?" * 32))) == 1, TOLD_WITHIN, "one entry")
    assert (watched.cache / f"{0:032x}").exists()


def test_a_watcher_that_does_not_run_is_noticed(unwatched: Watched) -> None:
    file = unwatched.states / "responses.cache-on"
    file.touch()
    assert unwatched.problem() == ""
    os.utime(file, times=(time.time() - 300,) * 2)
    assert "cache-watcher.sh does not run" in unwatched.problem()
