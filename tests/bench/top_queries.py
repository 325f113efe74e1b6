"""The CPU seconds that a refresh of ./stack top costs Prometheus, with many routes, by window.

PYTHONPATH=. .local/venv/bin/python tests/bench/top_queries.py [ROUTES]

Fills a Prometheus with an hour of two cache statuses for each route, then sends top's queries.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from local.settings import BIN
from local.top.options import WINDOWS
from local.top.prometheus import Prometheus, PrometheusError
from local.top.snapshot import history, take
from tests.stacks import free_port

INTERVAL = 15  # seconds between samples: with 5 the file would be three times as large
HOUR = 3600
BOUNDS = [
    *(f"{number * scale:g}" for scale in (0.001, 0.01, 0.1, 1, 10) for number in range(1, 10)),
    "+Inf",
]
TARGET = 'job="nginx-access-exporter",instance="n"'
ROUNDS = 3


def samples(routes: int, start: int, end: int) -> Iterator[str]:
    """The series as OpenMetrics text, each counter growing by one a second."""
    times = range(start, end, INTERVAL)

    def series(name: str, labels: str, factor: float = 1) -> Iterator[str]:
        return (f"{name}{{{labels}}} {(t - start) * factor} {t}\n" for t in times)

    yield "# TYPE up gauge\n"
    for job in (TARGET, 'job="flask-app",instance="f"'):
        yield from (f"up{{{job}}} 1 {t}\n" for t in times)
    yield "# TYPE nginx_route_requests counter\n"
    of_routes = [
        f'{TARGET},route="/r{number}",cache="{cache}"'
        for number in range(routes)
        for cache in ("HIT", "MISS")
    ]
    for labels in of_routes:
        yield from series("nginx_route_requests_total", f'{labels},method="GET",status="200"')
    yield "# TYPE nginx_route_request_duration_seconds_bucket gauge\n"
    for labels in of_routes:
        for position, bound in enumerate(BOUNDS, start=1):
            yield from series(
                "nginx_route_request_duration_seconds_bucket",
                f'{labels},le="{bound}"',
                position / len(BOUNDS),
            )
    yield "# TYPE flask_http_request_duration_seconds_sum gauge\n"
    for number in range(routes):
        labels = f'job="flask-app",instance="f",route="/r{number}",method="GET",status="200"'
        yield from series("flask_http_request_duration_seconds_sum", labels, 0.01)
    yield "# EOF\n"


@contextlib.contextmanager
def prometheus(
    folder: Path, program: Path = BIN / "prometheus"
) -> Iterator[tuple[Prometheus, int]]:
    """A server on the blocks in folder/data, and its process id."""
    config = folder / "prometheus.yml"
    config.write_text("{}")
    address = f"127.0.0.1:{free_port()}"
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        server = Prometheus(f"http://{address}")
        try:
            while True:
                with contextlib.suppress(PrometheusError):
                    server.instant("up", time.time())
                    break
                time.sleep(0.1)
            yield server, process.pid
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(pid: int, action: Callable[[], object]) -> float:
    """The median CPU seconds that an action costs a process; other load hardly changes them."""
    costs = []
    for _ in range(ROUNDS):
        before = cpu_seconds(pid)
        action()
        costs.append(cpu_seconds(pid) - before)
    return statistics.median(costs)


def main() -> None:
    """Print CPU seconds of Prometheus, one line for each window."""
    routes = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    end = int(time.time())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "samples.txt"
        with text.open("w") as file:
            file.writelines(samples(routes, end - HOUR - 600, end))
        create = ["tsdb", "create-blocks-from", "openmetrics", "--quiet"]
        subprocess.run([BIN / "promtool", *create, text, folder / "data"], check=True)
        text.unlink()
        with prometheus(folder) as (server, pid):
            for window in WINDOWS:
                refresh = measured(pid, lambda w=window: take(server, w, end))
                course = measured(pid, lambda w=window: history(server, w, end))
                print(f"{window}: refresh {refresh:.2f} s, sparklines {course:.2f} s", flush=True)


if __name__ == "__main__":
    main()
