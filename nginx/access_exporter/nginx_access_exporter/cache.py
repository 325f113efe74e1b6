"""Measures nginx's caches: how full they are, how much they evict, and whether they can be written.

nginx does not report this, so the exporter scans the cache's folder. It reads the limits from the
`proxy_cache_path` directives that nginx itself reads. Beside the log, nginx/cache-watcher.sh keeps
an empty file for each zone that it watches: `ZONE.cache-on`, or `ZONE.cache-off` while the cache
cannot be written. It touches the file whenever it has tried.
"""

import contextlib
import logging
import os
import re
import shlex
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS_BETWEEN_SCANS: Final = 30.0
# A scan is followed by a pause of at least this many times its CPU time: 1 % of a core at most.
PAUSE_PER_CPU_TIME: Final = 99

# nginx's manual: a zone of one megabyte holds about 8 thousand keys.
KEYS_PER_MEGABYTE: Final = 8000
DEFAULT_INACTIVE: Final = 600.0  # seconds

_DIRECTIVE = re.compile(r"^\s*(?:proxy|fastcgi|uwsgi|scgi)_cache_path\s+([^;]+);", re.MULTILINE)
_COMMENT = re.compile(r"(?:^|\s)#.*")
_SIZE = re.compile(r"(\d+)([kmg]?)", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_DURATION = re.compile(r"(\d+)(ms|[smhdwMy]?)")
_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SECONDS |= {"M": 30 * 86400, "y": 365 * 86400}
# An entry's name is the MD5 of its key in hexadecimal; a file being written has a longer one.
_NAME_LENGTH = 32

logger = logging.getLogger(__name__)


class Zone(NamedTuple):
    """A cache as its directive describes it; sizes in bytes, times in seconds."""

    name: str
    path: Path
    keys_size: int
    max_size: int | None
    inactive: float


class Scan(NamedTuple):
    """What a scan found: the sizes in bytes, half of each key's hash, and when it was written."""

    size: int
    keys: "array[int]"
    written: "array[float]"


def zones(config: str) -> list[Zone]:
    """Reads the caches in an nginx configuration file.

    Args:
        config: the file's text; `${NAME}` in a directive is taken from the environment.

    Raises:
        ValueError: a directive is not understood.
    """
    text = _COMMENT.sub("", config)
    return [_zone(os.path.expandvars(found[1])) for found in _DIRECTIVE.finditer(text)]


def _zone(arguments: str) -> Zone:
    if missing := re.search(r"\$\{?\w+\}?", arguments):
        raise ValueError(f"{missing[0]} of a cache's directive is not in the environment")
    path, *words = shlex.split(arguments)
    parameters = dict(word.partition("=")[::2] for word in words)
    try:
        name, size = parameters["keys_zone"].split(":")
        return Zone(
            name,
            Path(path),
            _size(size),
            _size(parameters["max_size"]) if "max_size" in parameters else None,
            _duration(parameters["inactive"]) if "inactive" in parameters else DEFAULT_INACTIVE,
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"can't read the cache's directive {arguments!r}: {error}") from error


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"not a size: {text!r}")
    return int(found[1]) * _SIZE_UNITS[found[2].lower()]


def _duration(text: str) -> float:
    parts = text.split() if " " in text else [text]
    if not re.fullmatch(rf"(?:{_DURATION.pattern})+", "".join(parts)):
        raise ValueError(f"not a time: {text!r}")
    return sum(int(number) * _SECONDS[unit] for number, unit in _DURATION.findall("".join(parts)))


def scan(folder: Path) -> Scan:
    """Scans the folder of a cache.

    Raises:
        OSError: the folder is missing or not readable.
    """
    size, keys, written = 0, array("Q"), array("d")
    for name, stat in _entries(str(folder)):
        try:
            keys.append(int(name[_NAME_LENGTH // 2 :], 16))
        except ValueError:
            continue
        written.append(stat.st_mtime)
        # As nginx counts it for max_size: whole blocks.
        size += max(stat.st_size, stat.st_blocks * 512)
    return Scan(size, keys, written)


def _entries(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                yield from _entries(item.path)
            elif len(item.name) == _NAME_LENGTH:
                try:
                    yield item.name, item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # evicted meanwhile


class CacheMetrics(Collector):
    """Scans caches at intervals, in a thread of its own.

    Args:
        caches: the zones to scan.
        states: the folder of the watcher's files.
    """

    def __init__(self, caches: list[Zone], states: Path) -> None:
        self._caches = caches
        self._states = states
        self._scans: dict[str, Scan] = {}
        self._evictions = dict.fromkeys((zone.name for zone in caches), 0)
        self._failures: set[str] = set()

    def start(self) -> None:
        """Scans now, and at intervals until the process ends."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            before = time.thread_time()
            self.update()
            pause = PAUSE_PER_CPU_TIME * (time.thread_time() - before)
            time.sleep(max(SECONDS_BETWEEN_SCANS, pause))

    def update(self) -> None:
        """Scans every cache once."""
        for zone in self._caches:
            try:
                found = scan(zone.path)
            except OSError as error:
                self._scans.pop(zone.name, None)
                if not (isinstance(error, FileNotFoundError) or zone.name in self._failures):
                    self._failures.add(zone.name)
                    logger.error("can't scan the cache %s: %s", zone.name, error)
            else:
                if before := self._scans.get(zone.name):
                    self._evictions[zone.name] += evicted(before, found, zone.inactive)
                self._scans[zone.name] = found

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics of the last scan; for a cache that can't be scanned, its limits."""
        capacity = _gauge("keys_capacity", "About how many entries the zone's memory holds.")
        maximum = _gauge("max_size_bytes", "Size above which nginx evicts entries.")
        entries = _gauge("entries", "Entries in the cache.")
        size = _gauge("size_bytes", "Disk space of the entries.")
        oldest = _gauge(
            "oldest_entry_age_seconds", "Time since the oldest entry was written or revalidated."
        )
        evictions = CounterMetricFamily(
            "nginx_cache_evictions",
            "Entries that vanished before they were unused for the zone's `inactive` time.",
            labels=("zone",),
        )
        writable = _gauge("writable", "1, or 0 while nginx does not use the cache.")
        tried = _gauge("write_age_seconds", "Time since the watcher last tried to write the cache.")
        for zone in self._caches:
            labels = (zone.name,)
            for value, state in enumerate(("off", "on")):
                with contextlib.suppress(FileNotFoundError):
                    file = self._states / f"{zone.name}.cache-{state}"
                    tried.add_metric(labels, max(0, time.time() - file.stat().st_mtime))
                    writable.add_metric(labels, value)
            capacity.add_metric(labels, KEYS_PER_MEGABYTE * zone.keys_size // (1 << 20))
            if zone.max_size is not None:
                maximum.add_metric(labels, zone.max_size)
            if found := self._scans.get(zone.name):
                entries.add_metric(labels, len(found.keys))
                size.add_metric(labels, found.size)
                evictions.add_metric(labels, self._evictions[zone.name])
                if found.written:
                    oldest.add_metric(labels, max(0, time.time() - min(found.written)))
        yield from (capacity, maximum, entries, size, oldest, evictions, writable, tried)


def evicted(before: Scan, after: Scan, inactive: float) -> int:
    """Counts the entries that vanished between two scans while younger than `inactive` seconds.

    nginx may have removed an older one because nobody asked for it; only nginx knows.
    """
    youngest_expired = time.time() - inactive
    kept = set(after.keys)
    return sum(
        written > youngest_expired and key not in kept
        for key, written in zip(before.keys, before.written, strict=True)
    )


def _gauge(name: str, documentation: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"nginx_cache_{name}", documentation, labels=("zone",))
