"""The CPU time and memory of scanning nginx's cache, with 1, 10 and 100 thousand entries.

.local/venv/bin/python tests/bench/cache_scan.py
"""

from __future__ import annotations

import hashlib
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

from nginx_access_exporter.cache import (
    PAUSE_PER_CPU_TIME,
    SECONDS_BETWEEN_SCANS,
    CacheMetrics,
    Zone,
)

SCANS = 5


def main() -> None:
    """Print the table."""
    print(
        "| entries | a scan, CPU ms | pause after it, s | share of a core | memory added, MB |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for entries in (1_000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            for number in range(entries):
                make_entry(Path(folder), number)
            # In a new process, so that its peak memory is that of these scans.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                cpu, memory = pool.apply(measure, (folder, entries))
        pause = max(SECONDS_BETWEEN_SCANS, PAUSE_PER_CPU_TIME * cpu)
        share = cpu / (cpu + pause)
        print(f"| {entries:,} | {cpu * 1000:.0f} | {pause:.0f} | {share:.2%} | {memory:.1f} |")


def make_entry(folder: Path, number: int) -> None:
    """Write an entry where nginx with levels=1:2 has it."""
    name = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
    path = folder / name[-1] / name[-3:-1] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)


def measure(folder: str, entries: int) -> tuple[float, float]:
    """Return the CPU seconds of a scan, and the megabytes that scans add to the process."""
    zone = Zone("bench", Path(folder), keys_size=10 << 20, max_size=None, inactive=600)
    metrics = CacheMetrics([zone], zone.path)
    before = peak_memory()
    times = []
    for _ in range(SCANS):
        start = time.thread_time()
        metrics.update()
        times.append(time.thread_time() - start)
    (found,) = metrics._scans.values()
    assert len(found.keys) == entries
    return statistics.median(times), peak_memory() - before


def peak_memory() -> float:
    """The most megabytes this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
