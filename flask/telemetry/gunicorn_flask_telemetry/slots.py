"""Worker slots: numbers that a replacement inherits, and what the workers in each have done.

A slot is a file of 8-byte floats, mapped by the arbiter, the worker and the metrics server. Each
float has one writer and is read and written whole, so no lock is shared between processes, and
whatever a killed worker left behind is readable.
"""

import fcntl
import itertools
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REASONS = ("exit", "timeout", "signal")

# Layout: these floats, then two for each thread.
PID, START_TIME, CPU_SECONDS, LEFT, *EXITS = range(4 + len(REASONS))
HEADER = EXITS[-1] + 1
BUSY, REQUESTS, THREAD = 0, 1, 2
FLOAT_BYTES = 8

_current: int | str = 0


def current() -> int | str:
    """Return the slot number of this process; 0 in the arbiter.

    In a process that the application forks, also its pid: the two must not write the same files.
    """
    return _current


class Slot:
    """A slot claimed by this arbiter, for one worker at a time."""

    def __init__(self, number: int, file: int, threads: int) -> None:
        """Take over the open and locked `file`, with room for at least `threads` threads."""
        self.number = number
        self._file = file
        size = (HEADER + THREAD * threads) * FLOAT_BYTES
        # Not ftruncate: on a full file system the first write to what it adds would be a SIGBUS.
        os.posix_fallocate(file, 0, size)
        self._map = mmap.mmap(file, 0)
        self.values = memoryview(self._map).cast("d")
        self._thread_numbers = itertools.count()
        self._settle()

    def occupy(self) -> None:
        """Make this process, just forked, the slot's worker."""
        global _current  # noqa: PLW0603  the one fact about a process that is asked everywhere
        _current = self.number
        os.register_at_fork(after_in_child=_leave)
        self.values[START_TIME] = time.time()
        self.values[PID] = os.getpid()

    def next_thread(self) -> int:
        """Return where the calling thread's floats start; each thread of a worker calls once.

        Raises:
            IndexError: there are more threads than the slot has room for.
        """
        offset = HEADER + THREAD * next(self._thread_numbers)
        self.values[offset + THREAD - 1]  # raises IndexError
        return offset

    def leave(self) -> None:
        """Tell the arbiter that the worker is ending by itself."""
        self.values[LEFT] = 1

    def release(self, *, aborted: bool, cpu_seconds: float) -> None:
        """Count the worker's exit, and free the slot for the next."""
        reason = "timeout" if aborted else "exit" if self.values[LEFT] else "signal"
        self.values[CPU_SECONDS] += cpu_seconds
        self._settle()
        self.values[EXITS[REASONS.index(reason)]] += 1
        # Closing alone would not do: a worker being forked right now has the open file, too.
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self.close()

    def close(self) -> None:
        """Let go of the file; without a release, the slot is free when the last process has."""
        self.values.release()
        self._map.close()
        os.close(self._file)

    def _settle(self) -> None:
        """End the requests that a dead worker was killed in."""
        self.values[PID] = self.values[LEFT] = 0
        for busy in range(HEADER, len(self.values), THREAD):
            if self.values[busy] < 0:
                self.values[busy] += time.monotonic()


def _leave() -> None:
    global _current  # noqa: PLW0603
    _current = f"{_current}-{os.getpid()}"


def claim(directory: Path, threads: int) -> Slot:
    """Return the lowest free slot, made if need be, locked for as long as its worker lives.

    The lock goes with the open file to the worker, so that of two arbiters (an upgrade by USR2)
    and their workers no two ever share a slot.
    """
    for number in itertools.count(1):
        file = os.open(directory / f"worker_{number}.slot", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        else:
            return Slot(number, file, threads)
    raise AssertionError


@dataclass(frozen=True)
class Reading:
    """What a slot held at one moment; times in seconds."""

    number: int
    pid: int
    start_time: float
    cpu_seconds: float
    exits: dict[str, float]
    busy_seconds: float
    requests: float
    in_flight: int


def read_all(directory: Path) -> list[Reading]:
    """Read every slot that there is, in order of their numbers."""
    # A file is empty for a moment after it is made.
    paths = [path for path in directory.glob("worker_*.slot") if path.stat().st_size]
    return sorted(map(read, paths), key=lambda reading: reading.number)


def read(path: Path) -> Reading:
    """Read a slot file."""
    with _floats(path) as values:
        now = time.monotonic()
        busy = values[HEADER::THREAD].tolist()
        return Reading(
            number=int(path.stem.removeprefix("worker_")),
            # In the reverse order of release(): an exit that is counted is over.
            exits={reason: values[at] for reason, at in zip(REASONS, EXITS, strict=True)},
            pid=int(values[PID]),
            start_time=values[START_TIME],
            cpu_seconds=values[CPU_SECONDS],
            busy_seconds=sum(seconds + now if seconds < 0 else seconds for seconds in busy),
            requests=sum(values[HEADER + REQUESTS :: THREAD].tolist()),
            in_flight=sum(seconds < 0 for seconds in busy),
        )


@contextmanager
def _floats(path: Path) -> Iterator[memoryview]:
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as octets,
        octets.cast("d") as values,
    ):
        yield values
