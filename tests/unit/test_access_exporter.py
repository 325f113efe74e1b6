"""nginx-access-exporter as a process: its metrics, checkpoints, signals, options and limits."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from nginx_access_exporter import __version__
from nginx_access_exporter.exporter import AccessExporter
from nginx_access_exporter.metrics import BUCKETS_MS, FINE_BUCKETS_MS
from tests.access_lines import HIT, line
from tests.stacks import free_port, wait_until

PROGRAM = Path(sys.executable).with_name("nginx-access-exporter")
LINE = HIT + b"\n"
MEMORY_LIMIT = 100_000_000


class Running:
    """The exporter as a process of its own."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.stderr = log.with_suffix(".stderr")
        self.start()

    def start(self) -> None:
        with self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                [
                    PROGRAM,
                    f"--log.path={self._log}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stderr=stderr,
            )
        wait_until(lambda: requests.get(f"{self.url}/-/healthy", timeout=5).ok, 20, "the exporter")

    def stop(self, by: signal.Signals) -> int:
        self.process.send_signal(by)
        return self.process.wait(8)  # shorter than the exporter's timeout for silent clients

    def get(self, **headers: str) -> requests.Response:
        response = requests.get(f"{self.url}/metrics", headers=headers, timeout=60)
        assert response.status_code == 200
        return response

    def total(self, name: str) -> float:
        """The sum of a metric over all its label sets."""
        return total(text_string_to_metric_families(self.get().text), name)

    def peak_memory(self) -> int:
        """The most bytes the process has had in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")
        )


def total(families: Iterable[Metric], name: str) -> float:
    return sum(it.value for family in families for it in family.samples if it.name == name)


@pytest.fixture
def log() -> Iterator[Path]:
    """The path of a log in memory, which does not exist yet."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder, "access.log")


@pytest.fixture
def append(log: Path) -> Iterator[Callable[[bytes], None]]:
    """Appends to the log as nginx does."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(data: bytes) -> None:
        assert os.write(fd, data) == len(data)

    yield write
    os.close(fd)


@pytest.fixture
def exporter(log: Path) -> Iterator[Running]:
    running = Running(log)
    yield running
    running.process.kill()
    running.process.wait()


Append = Callable[[bytes], None]


def test_a_scrape_sees_every_line_already_written(exporter: Running, append: Append) -> None:
    for lines in range(1, 20):
        append(LINE)
        assert exporter.total("nginx_route_requests_total") == lines
    assert exporter.total("nginx_access_exporter_backlog_bytes") == 0


def test_lines_are_read_and_freed_without_a_scrape(
    exporter: Running, append: Append, log: Path
) -> None:
    assert exporter.process.poll() is None
    append(LINE * 100_000)
    wait_until(lambda: log.stat().st_blocks * 512 < 10_000, 10, "the log's memory to be freed")


def test_counters_continue_after_a_restart(exporter: Running, append: Append) -> None:
    append(LINE * 10)
    assert exporter.total("nginx_route_requests_total") == 10
    assert exporter.stop(signal.SIGTERM) == 0
    append(LINE * 5)
    exporter.start()
    assert exporter.total("nginx_route_requests_total") == 15
    assert exporter.total("nginx_access_exporter_lines_total") == 15


def test_sigterm_counts_the_remaining_lines_and_exits_with_0(
    exporter: Running, append: Append, log: Path
) -> None:
    append(LINE * 3)
    assert exporter.stop(signal.SIGTERM) == 0
    checkpoint = json.loads(log.with_name(f"{log.name}.checkpoint").read_text())
    assert checkpoint["counts"]["lines"] == 3


def test_no_line_is_lost_or_counted_twice_by_sigkill_at_any_time(
    exporter: Running, append: Append
) -> None:
    written = 0
    enough = threading.Event()

    def write() -> None:
        nonlocal written
        while not enough.wait(0.001):
            append(LINE * 800)
            written += 800

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0.0
    try:
        for n in range(15):
            before = written
            wait_until(lambda before=before: written > before, 5, "more lines")
            if n % 3:
                exporter.get()
            exporter.stop(signal.SIGKILL)
            exporter.start()
            now = exporter.total("nginx_route_requests_total")
            assert now >= seen, "a counter went down"
            seen = now
    finally:
        enough.set()
        writer.join()
    assert exporter.total("nginx_route_requests_total") == written
    assert exporter.total("nginx_route_request_duration_seconds_count") == written
    assert exporter.total("nginx_route_response_bytes_total") == written * 345


class KilledError(BaseException):
    """Stands for SIGKILL: no handler of the program catches it."""


@pytest.mark.parametrize("moment", ["_metrics.add", "_save", "_log.release"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_around_any_step_is_harmless(
    log: Path, append: Append, moment: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(LINE * 7)
    exporter = AccessExporter(log)
    exporter.drain()
    append(LINE * 5)

    *owner, step = moment.split(".")
    target = getattr(exporter, owner[0]) if owner else exporter
    original = getattr(target, step)

    def killed(*arguments: object) -> None:
        if after:
            original(*arguments)
        raise KilledError

    monkeypatch.setattr(target, step, killed)
    with pytest.raises(KilledError):
        exporter.drain()

    again = AccessExporter(log)
    assert total(again.collect(), "nginx_route_requests_total") == 12


def test_without_its_checkpoint_it_counts_the_lines_that_were_not_freed(
    log: Path, append: Append, capfd: pytest.CaptureFixture[str]
) -> None:
    append(LINE * 1000)
    AccessExporter(log).drain()
    log.with_name(f"{log.name}.checkpoint").write_text("{")
    append(LINE * 3)
    running = Running(log)
    try:
        assert running.total("nginx_route_requests_total") == 3
    finally:
        running.stop(signal.SIGKILL)
    assert "counters start from 0" in running.stderr.read_text()
    assert capfd.readouterr().out == ""


def test_if_no_checkpoint_can_be_written_it_counts_on_and_removes_the_old_one(
    log: Path, append: Append
) -> None:
    exporter = AccessExporter(log)
    append(LINE)
    exporter.drain()
    log.with_name(f"{log.name}.checkpoint.new").mkdir()  # can't be written: it is a folder
    append(LINE * 2)
    assert total(exporter.collect(), "nginx_route_requests_total") == 3
    # An old count would look like a reset to Prometheus, which would add it once more.
    assert not log.with_name(f"{log.name}.checkpoint").exists()
    assert total(AccessExporter(log).collect(), "nginx_route_requests_total") == 0


def test_an_unreadable_log_is_reported_and_metrics_are_served(exporter: Running, log: Path) -> None:
    log.mkdir()
    wait_until(lambda: "can't read the log" in exporter.stderr.read_text(), 5, "a report")
    assert exporter.total("nginx_access_exporter_lines_total") == 0
    log.rmdir()
    log.write_bytes(LINE)
    assert exporter.total("nginx_access_exporter_lines_total") == 1


FOREIGN = b'203.0.113.9 - - [24/Nov/2026:15:32:00 +0000] "GET / HTTP/1.1" 200 612\n' * 1000


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command until it ends."""
    return subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_another_programs_log_is_refused_at_start_and_not_changed(log: Path) -> None:
    log.write_bytes(FOREIGN)
    before = log.stat()
    done = run(f"--log.path={log}", f"--web.listen-address=127.0.0.1:{free_port()}")
    assert done.returncode == 1
    (entry,) = [json.loads(text) for text in done.stderr.splitlines()]
    assert entry["level"] == "error"
    for part in (f"{log} is not an access metrics log", "nam/2", "move this file away"):
        assert part in entry["message"]
    after = log.stat()
    assert (after.st_mtime_ns, after.st_blocks) == (before.st_mtime_ns, before.st_blocks)
    assert log.read_bytes() == FOREIGN
    assert [path.name for path in log.parent.iterdir()] == [log.name]


def test_another_programs_log_that_appears_later_is_reported_and_metrics_are_served(
    exporter: Running, log: Path
) -> None:
    log.write_bytes(FOREIGN)
    wait_until(
        lambda: "is not an access metrics log" in exporter.stderr.read_text(), 10, "a report"
    )
    assert exporter.total("nginx_access_exporter_lines_total") == 0
    assert log.read_bytes() == FOREIGN
    log.write_bytes(LINE)
    assert exporter.total("nginx_access_exporter_lines_total") == 1


def test_a_port_in_use_ends_the_start_with_the_reason(log: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run(f"--log.path={log}", f"--web.listen-address={address}")
    assert done.returncode == 1
    message = json.loads(done.stderr)["message"]
    assert message == f"can't listen on {address}: Address already in use"


def test_help_warns_that_the_log_is_consumed() -> None:
    text = " ".join(run("--help").stdout.split())
    assert "CONSUMES it: what was read is erased from the file" in text


def test_version_and_revision_are_shown_and_exported(exporter: Running) -> None:
    found = re.fullmatch(
        rf"nginx-access-exporter {re.escape(__version__)} \(revision (\w+)\)\n",
        run("--version").stdout,
    )
    assert found
    line = f'nginx_access_exporter_build_info{{revision="{found[1]}",version="{__version__}"}} 1.0'
    assert line in exporter.get().text.splitlines()


def test_both_formats_have_the_same_samples_and_promtool_accepts_them(
    exporter: Running, append: Append
) -> None:
    failed = line(route=r"/a\x22b", connect="0.001, -", header="-", upstream_status="502, 502")
    append(LINE + failed + b"\nbad\n")
    plain = exporter.get()
    assert plain.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    modern = exporter.get(Accept="application/openmetrics-text; version=1.0.0")
    assert modern.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")

    def samples(families: Iterable[Metric]) -> set[tuple[object, ...]]:
        return {
            (it.name, *sorted(it.labels.items()), it.value)
            for family in families
            for it in family.samples
            if it.name.startswith("nginx_")
        }

    found = samples(text_string_to_metric_families(plain.text))
    assert found == samples(openmetrics.text_string_to_metric_families(modern.text))
    assert ("nginx_access_exporter_malformed_lines_total", 1.0) in found
    assert "_created" not in plain.text + modern.text

    check = subprocess.run(
        ["promtool", "check", "metrics"],
        input=plain.text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_only_metrics_and_health_are_served(exporter: Running) -> None:
    assert requests.get(f"{exporter.url}/-/healthy", timeout=5).status_code == 200
    for path in ("/", "/metrics/", "/-/healthy/x", "/favicon.ico"):
        assert requests.get(exporter.url + path, timeout=5).status_code == 404


def test_a_silent_client_delays_neither_a_scrape_nor_the_end(exporter: Running) -> None:
    host, port = exporter.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):
        assert requests.get(f"{exporter.url}/metrics", timeout=5).ok
        assert exporter.stop(signal.SIGTERM) == 0


def test_its_log_has_the_fields_of_the_apps_log(exporter: Running, append: Append) -> None:
    append(LINE + b"bad\n" * 1000)
    assert exporter.total("nginx_access_exporter_malformed_lines_total") == 1000
    exporter.stop(signal.SIGTERM)
    entries = [json.loads(line) for line in exporter.stderr.read_text().splitlines()]
    assert [entry["level"] for entry in entries] == ["info", "warning", "info"]
    assert {"time", "level", "logger", "message", "pid"} == set(entries[0])
    assert entries[0]["time"].endswith("Z")
    assert len(entries[0]["time"]) == len("2026-01-01T00:00:00.000Z")


def test_no_flood_exceeds_the_bound_on_series_or_memory(exporter: Running, append: Append) -> None:
    for n in range(5000):
        status = f"{n % 900 + 100}"
        flooded = line(
            method=("GET", "POST", "PUT", "M" * 5000)[n % 4],
            route=f"/{n:099}",
            status=status,
            cache=("HIT", "MISS", "-")[n % 3],
            duration=f"0.{n % 1000:03}",
            upstream_status=status,
            completion="",
        )
        append(flooded + b"\n")
    with concurrent.futures.ThreadPoolExecutor(3) as clients:
        pages = [page.text for page in clients.map(lambda _: exporter.get(), range(3))]
    assert exporter.total("nginx_route_requests_total") == 5000
    series = [line for line in pages[0].splitlines() if line.startswith("nginx_")]
    # Four counters; histograms with their buckets, +Inf, sum and count; and four single series.
    buckets = 2 * len(BUCKETS_MS) + 2 * len(FINE_BUCKETS_MS)
    assert len(series) <= 4 * (1000 + 1) + (300 + 1) * (buckets + 4 * 3) + 4
    assert exporter.peak_memory() < MEMORY_LIMIT


def test_two_million_lines_make_neither_log_nor_process_grow(
    exporter: Running, append: Append, log: Path
) -> None:
    # Lines of cached hits, and of uncached requests, which differ only in their times.
    some = b"".join(
        LINE + line(duration=f"0.{n:03}", header=f"0.{n * 7 % 100:03}", bytes=f"{n}") + b"\n"
        for n in range(500)
    )
    for lines in range(100_000, 2_100_000, 100_000):
        for _ in range(100):
            append(some)
        assert exporter.total("nginx_route_requests_total") == lines
        if lines == 500_000:
            memory = exporter.peak_memory()
    assert log.stat().st_size > 100_000_000
    assert log.stat().st_blocks * 512 < 8_000_000
    assert exporter.peak_memory() < MEMORY_LIMIT
    assert exporter.peak_memory() <= memory + 1_000_000
