"""The metrics of one scrape, read from the slots, /proc and the listening sockets."""

import json
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import MultiProcessCollector

from gunicorn_flask_telemetry import REVISION, __version__, slots

# struct tcp_info of linux/tcp.h. For a listening socket, Linux gives the number of connections that
# wait to be accepted as tcpi_unacked, and the limit of that number as tcpi_sacked.
TCP_INFO = struct.Struct("8B6I")
UNACKED, SACKED = 12, 13
TRIES, SECONDS_BETWEEN_TRIES = 20, 0.01
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """A live process, as /proc/PID/stat describes it."""

    cpu_seconds: float
    resident_bytes: int

    @classmethod
    def read(cls, pid: int) -> Self | None:
        """Return the process, or None if it has ended or is a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The process's name is in brackets, and may contain brackets and spaces. The first field
        # after it, the state, is number 3 in proc_pid_stat(5).
        fields = stat.rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        ticks = int(fields[11]) + int(fields[12])
        return cls(ticks / TICKS_PER_SECOND, int(fields[21]) * PAGE_BYTES)


class WorkerCollector:
    """The gunicorn_* metrics and the application's version.

    prometheus_client keeps the histogram of the queue.
    """

    def __init__(self, directory: Path, listeners: Iterable[socket.socket]) -> None:
        """Read the slots in `directory`, and the backlog of `listeners`."""
        self._directory = directory
        self._listeners = list(listeners)
        self._busy_seconds: dict[int, float] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        yield InfoMetricFamily(
            "gunicorn_flask_telemetry_build",
            "The version of this package, and the revision that it was built from",
            {"version": __version__, "revision": REVISION},
        )
        yield InfoMetricFamily(
            "flask_app",
            "The version of the application, from the environment variable APP_VERSION",
            {"version": os.environ.get("APP_VERSION") or "unknown"},
        )
        readings = slots.read_all(self._directory)
        processes = {
            reading.number: process
            for reading in readings
            if reading.pid and (process := Process.read(reading.pid))
        }
        arbiter = json.loads((self._directory / "arbiter.json").read_text())
        yield _gauge(
            "process_start_time_seconds", "Unix time of the arbiter's start", arbiter["start_time"]
        )
        yield _gauge("gunicorn_workers", "Workers alive", len(processes))
        yield _gauge(
            "gunicorn_workers_configured", "Workers that are configured", arbiter["workers"]
        )
        yield _gauge("gunicorn_worker_threads", "Threads of each worker", arbiter["threads"])
        for reading in readings:
            # If a request starts during the read, the sum can be microseconds too small.
            last = self._busy_seconds.get(reading.number, 0.0)
            self._busy_seconds[reading.number] = max(last, reading.busy_seconds)
        yield from _work(readings, processes, self._busy_seconds)
        yield from _resources(readings, processes)
        yield _exits(readings)
        yield from self._backlog()

    def _backlog(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "gunicorn_listen_backlog",
            "Connections waiting for a worker to accept them",
            labels=["listener"],
        )
        limit = GaugeMetricFamily(
            "gunicorn_listen_backlog_limit",
            "Connections that may wait; the kernel drops more",
            labels=["listener"],
        )
        for listener in self._listeners:
            address = _address(listener)
            info = TCP_INFO.unpack(
                listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
            )
            waiting.add_metric([address], info[UNACKED])
            limit.add_metric([address], info[SACKED])
        yield waiting
        yield limit


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value)


def _work(
    readings: list[slots.Reading], processes: dict[int, Process], busy_seconds: dict[int, float]
) -> Iterator[Metric]:
    in_flight = GaugeMetricFamily(
        "gunicorn_worker_requests_in_flight", "Requests in progress", labels=["worker"]
    )
    requests = CounterMetricFamily(
        "gunicorn_worker_requests", "Requests answered", labels=["worker"]
    )
    busy = CounterMetricFamily(
        "gunicorn_worker_busy_seconds",
        "Time that threads spent on requests, including those in flight",
        labels=["worker"],
    )
    for reading in readings:
        labels = [str(reading.number)]
        if reading.number in processes:
            in_flight.add_metric(labels, reading.in_flight)
        requests.add_metric(labels, reading.requests)
        busy.add_metric(labels, busy_seconds[reading.number])
    yield in_flight
    yield requests
    yield busy


def _resources(readings: list[slots.Reading], processes: dict[int, Process]) -> Iterator[Metric]:
    memory = GaugeMetricFamily(
        "gunicorn_worker_resident_memory_bytes", "Resident memory", labels=["worker"]
    )
    cpu = CounterMetricFamily(
        "gunicorn_worker_cpu_seconds", "User and system CPU time", labels=["worker"]
    )
    started = GaugeMetricFamily(
        "gunicorn_worker_start_time_seconds", "Unix time of the fork", labels=["worker"]
    )
    for reading in readings:
        labels = [str(reading.number)]
        process = processes.get(reading.number)
        if process:
            memory.add_metric(labels, process.resident_bytes)
            started.add_metric(labels, reading.start_time)
            cpu.add_metric(labels, reading.cpu_seconds + process.cpu_seconds)
        elif not reading.pid:
            # The time of a worker that is dead but not yet released is in neither place: skip it.
            cpu.add_metric(labels, reading.cpu_seconds)
    yield memory
    yield cpu
    yield started


def _exits(readings: list[slots.Reading]) -> Metric:
    exits = CounterMetricFamily("gunicorn_worker_exits", "Workers that ended", labels=["reason"])
    for reason in slots.REASONS:
        exits.add_metric([reason], sum(reading.exits[reason] for reading in readings))
    return exits


class RequestCollector:
    """The metrics that workers keep with prometheus_client: flask_* and the application's own."""

    def __init__(self, directory: Path) -> None:
        """Read the multiprocess files in `directory`."""
        self._files = MultiProcessCollector(None, str(directory))

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, and flask_http_request_total from the counts of the histogram."""
        for metric in self._read():
            yield metric
            if metric.name == "flask_http_request_duration_seconds":
                yield _total(metric)

    def _read(self) -> list[Metric]:
        for _ in range(TRIES - 1):
            # The file of a worker that just ended is gone, or that of a new one is still empty.
            with suppress(FileNotFoundError, struct.error):
                return list(self._files.collect())
            time.sleep(SECONDS_BETWEEN_TRIES)
        return list(self._files.collect())


def _total(durations: Metric) -> Metric:
    total = CounterMetricFamily(
        "flask_http_request",
        "Total number of HTTP requests",
        labels=["method", "route", "status"],
    )
    for sample in durations.samples:
        if sample.name.endswith("_count"):
            labels = sample.labels
            total.add_metric([labels["method"], labels["route"], labels["status"]], sample.value)
    return total
