"""Histograms that cost little to observe, in the files of prometheus_client's multiprocess mode.

prometheus_client's own go through a dozen functions for each of two values, every time: a fifth of
what a whole request costs in Flask. These find out once where the values stand, and add to them.
"""

import mmap
import threading
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.utils import floatToGoString

# Seconds. The same for all latencies of this project; nginx logs milliseconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
FLOAT_BYTES = 8


class Histogram:
    """Counts of durations, in seconds, by BUCKETS."""

    def __init__(
        self, values: memoryview, buckets: list[int], total: int, lock: threading.Lock
    ) -> None:
        """Count in `values`: in each bucket's place, and the sum in that of `total`."""
        self._values = values
        self._buckets = buckets
        self._total = total
        self._lock = lock

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        bucket = self._buckets[bisect_left(BUCKETS, seconds)]
        values = self._values
        with self._lock:
            values[bucket] += 1
            values[self._total] += seconds


class HistogramFile:
    """The histograms of one process; it goes on where the last one with this file ended."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Its name is to be histogram_*.db, for prometheus_client."""
        self._path = path
        self._dict = MmapedDict(path)
        self._lock = threading.Lock()
        self._values = memoryview(b"")

    def histogram(self, name: str, documentation: str, labels: Mapping[str, str]) -> Histogram:
        """Return the histogram with these labels, made if need be."""
        names, label_values = list(labels), list(labels.values())
        total = mmap_key(name, f"{name}_sum", names, label_values, documentation)
        buckets = [
            mmap_key(
                name,
                f"{name}_bucket",
                [*names, "le"],
                [*label_values, floatToGoString(bound)],
                documentation,
            )
            for bound in (*BUCKETS, float("inf"))
        ]
        with self._lock:
            for key in (total, *buckets):
                self._dict.read_value(key)  # makes it
            places = {
                key: offset // FLOAT_BYTES
                for key, _, _, offset in MmapedDict.read_all_values_from_file(self._path)
            }
            # A mapping keeps a file open, so histograms share one until the file has grown; those
            # made before go on with theirs.
            if self._path.stat().st_size != self._values.nbytes:
                with self._path.open("r+b") as file:
                    self._values = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")
        return Histogram(self._values, [places[key] for key in buckets], places[total], self._lock)
