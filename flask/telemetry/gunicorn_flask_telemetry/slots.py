"""Worker slots: numbers that a replacement inherits, and the counts of the workers in each.

A slot is a file of 8-byte floats, mapped by the arbiter, the worker and the metrics server. Each
float has one writer and is read and written whole. So processes share no lock, and the counts of a
killed worker stay readable.
"""

import itertools
import mmap
import os
import time
from collections.abc import Collection, Iterator
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

    A process that the application forks gets `SLOT-PID`: parent and child must not write to the
    same files.
    """
    return _current


class Slot:
    """A slot that the arbiter claimed for one worker."""

    def __init__(self, path: Path, threads: int) -> None:
        """Open or make the file at `path`, with room for at least `threads` threads."""
        self.number = _number(path)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            size = (HEADER + THREAD * threads) * FLOAT_BYTES
            # ftruncate would leave a hole: on a full file system the first write to it is a SIGBUS.
            os.posix_fallocate(file, 0, size)
            self._map = mmap.mmap(file, 0)
        finally:
            os.close(file)
        self.values = memoryview(self._map).cast("d")
        self._thread_numbers = itertools.count()
        self._settle()

    def occupy(self) -> None:
        """Make this process, which was just forked, the slot's worker."""
        global _current  # noqa: PLW0603  prometheus_client asks current() for it everywhere
        _current = self.number
        os.register_at_fork(after_in_child=_leave)
        self.values[START_TIME] = time.time()
        self.values[PID] = os.getpid()

    def next_thread(self) -> int:
        """Return where the calling thread's floats start; each thread of a worker calls this once.

        Raises:
            IndexError: there are more threads than the slot has room for.
        """
        offset = HEADER + THREAD * next(self._thread_numbers)
        self.values[offset + THREAD - 1]  # raises IndexError
        return offset

    def leave(self) -> None:
        """Note that the worker is ending by itself; called in the worker."""
        self.values[LEFT] = 1

    def release(self, *, aborted: bool, cpu_seconds: float) -> None:
        """Count the worker's exit, and make the slot ready for the next worker.

        Args:
            aborted: whether gunicorn killed the worker because it timed out.
            cpu_seconds: the worker's CPU time.
        """
        reason = "timeout" if aborted else "exit" if self.values[LEFT] else "signal"
        self.values[CPU_SECONDS] += cpu_seconds
        self._settle()
        self.values[EXITS[REASONS.index(reason)]] += 1
        self.close()

    def close(self) -> None:
        """Unmap the file."""
        self.values.release()
        self._map.close()

    def _settle(self) -> None:
        """End the requests that a killed worker left unfinished."""
        self.values[PID] = self.values[LEFT] = 0
        for busy in range(HEADER, len(self.values), THREAD):
            if self.values[busy] < 0:
                self.values[busy] += time.monotonic()


def _leave() -> None:
    global _current  # noqa: PLW0603
    _current = f"{_current}-{os.getpid()}"


def claim(directory: Path, taken: Collection[int], threads: int) -> Slot:
    """Return the lowest slot that is not in `taken`, the slots of live workers."""
    number = next(number for number in itertools.count(1) if number not in taken)
    return Slot(directory / f"worker_{number}.slot", threads)


@dataclass(frozen=True)
class Reading:
    """The contents of a slot at one moment; times in seconds."""

    number: int
    pid: int
    start_time: float
    cpu_seconds: float
    exits: dict[str, float]
    busy_seconds: float
    requests: float
    in_flight: int


def read_all(directory: Path) -> list[Reading]:
    """Read every slot, in order of their numbers."""
    # A file is empty for a moment after it is made.
    paths = [path for path in directory.glob("worker_*.slot") if path.stat().st_size]
    return sorted(map(read, paths), key=lambda reading: reading.number)


def read(path: Path) -> Reading:
    """Read a slot file."""
    with _floats(path) as values:
        now = time.monotonic()
        busy = values[HEADER::THREAD].tolist()
        return Reading(
            number=_number(path),
            # Read in the reverse order of release(), so that a counted exit is complete.
            exits={reason: values[at] for reason, at in zip(REASONS, EXITS, strict=True)},
            pid=int(values[PID]),
            start_time=values[START_TIME],
            cpu_seconds=values[CPU_SECONDS],
            busy_seconds=sum(seconds + now if seconds < 0 else seconds for seconds in busy),
            requests=sum(values[HEADER + REQUESTS :: THREAD].tolist()),
            in_flight=sum(seconds < 0 for seconds in busy),
        )


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("worker_"))


@contextmanager
def _floats(path: Path) -> Iterator[memoryview]:
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as octets,
        octets.cast("d") as values,
    ):
        yield values
