"""The errors of the percentiles on the dashboards, and the cost of the histograms.

Accuracy: nginx-access-exporter reads a log whose times are known, Prometheus scrapes the exporter
and evaluates the project's own rules. Their percentiles are compared with the exact ones of the
log. Each kind of time is a route of its own.

Cost: the same pipeline with 10 and 100 routes. Every third route is cached, and all get requests
all the time. Measured with the buckets of this version and, for comparison, with the coarse ones
for every histogram. The variants take turns. The table has the lowest time and CPU share of all
rounds, since other work on the machine only adds to them, and the median size.

Needs prometheus and the exporter's requirements:

    PATH=.local/bin:$PATH .local/venv/bin/python tests/bench/percentiles.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
RULES = ROOT / "prometheus" / "rules"
GROUP = f"{RULES / 'nginx.yml'};nginx"
QUANTILES = (0.5, 0.95, 0.99)
HISTOGRAMS = ("request_duration", "upstream_header_duration")
CACHE_STATUSES = ("HIT", "MISS", "EXPIRED", "STALE")

PROMETHEUS = """
global:
  scrape_interval: {interval}s
  scrape_timeout: {interval}s
  evaluation_interval: {interval}s
rule_files: [{rules}]
scrape_configs:
  - {{job_name: nginx-access-exporter, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}
"""
# The exporter with the buckets that the other histograms have.
COARSE = """
from nginx_access_exporter import exporter, metrics
metrics.FINE_BUCKETS_MS = metrics.BUCKETS_MS
exporter.main()
"""

Times = Callable[[random.Random], float]


def two_humps(source: random.Random) -> float:
    """Seconds: six of ten about 8 ms, the others about 400 ms."""
    return source.lognormvariate(math.log(0.008 if source.random() < 0.6 else 0.4), 0.25)


KINDS: dict[str, Times] = {
    "constant 0.003 s": lambda _: 0.003,
    "constant 0.1 s": lambda _: 0.1,
    "constant 0.25 s": lambda _: 0.25,
    "constant 0.502 s": lambda _: 0.502,
    "constant 2.01 s": lambda _: 2.01,
    "log-normal, median 0.08 s": lambda source: source.lognormvariate(math.log(0.08), 1),
    "two humps, 0.008 s and 0.4 s": two_humps,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20_000, help="of each kind of time")
    parser.add_argument("--seconds", type=int, default=30, help="of traffic, for the cost")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurement of cost")
    parser.add_argument("--only", choices=("accuracy", "cost"))
    arguments = parser.parse_args()
    if arguments.only != "cost":
        measure_accuracy(arguments.requests)
    if arguments.only != "accuracy":
        measure_cost(arguments.seconds, arguments.rounds)


# --- accuracy ---


def measure_accuracy(requests: int) -> None:
    """Print exact and shown percentiles of each kind of time."""
    source = random.Random(1)  # noqa: S311
    times = {
        kind: [round(seconds(source) * 1000) for _ in range(requests)]
        for kind, seconds in KINDS.items()
    }
    with Pipeline(interval=1) as pipeline:
        # First a request of each, since a rate misses what a new series counted before its first
        # scrape.
        pipeline.write(line(kind, values[0]) for kind, values in times.items())
        pipeline.wait_for_scrapes(3)
        pipeline.write(line(kind, ms) for kind, values in times.items() for ms in values)
        pipeline.wait_for_scrapes(5)
        print("| times | | p50 | p95 | p99 |\n| --- | --- | --- | --- | --- |")
        worst = 0.0
        for kind, values in times.items():
            exact = [percentile(values, quantile) for quantile in QUANTILES]
            print(f"| {kind} | exact | {' | '.join(f'{it:.3f}' for it in exact)} |")
            for histogram in HISTOGRAMS:
                cells = []
                for quantile, truth in zip(QUANTILES, exact, strict=True):
                    rule = f"nginx_{histogram}_seconds:p{quantile * 100:.0f}_rate5m"
                    shown = pipeline.query(f'route:{rule}{{route="{kind}"}}')
                    error = shown / truth - 1
                    worst = max(worst, abs(error))
                    cells.append(f"{shown:.3f} ({error:+.0%})")
                print(f"| | {histogram.replace('_', ' ')} | {' | '.join(cells)} |")
        print(f"\n{requests:,} requests of each kind. The largest error is {worst:.1%}.\n")


def percentile(values: list[int], quantile: float) -> float:
    """The exact percentile, in seconds, of times in milliseconds."""
    return sorted(values)[math.ceil(quantile * len(values)) - 1] / 1000


def line(route: str, ms: int, cache: str = "-") -> str:
    """A line of the access metrics log."""
    seconds = f"{ms / 1000:.3f}"
    upstream = ("-",) * 4 if cache in ("HIT", "STALE") else ("0.000", seconds, seconds, "200")
    fields = ("nam/2", "GET", route, "200", cache, seconds, *upstream, "345", "OK", "12", "12")
    return "\t".join(fields)


# --- cost ---


COLUMNS: dict[str, tuple[Callable[[list[float]], float], str]] = {
    "series": (statistics.median, ",.0f"),
    "scrape, ms": (min, ".0f"),
    "scrape, KB": (statistics.median, ",.0f"),
    "exporter, MB": (statistics.median, ".0f"),
    "exporter, CPU": (min, ".1%"),
    "slowest group, ms": (min, ".0f"),
    "Prometheus, MB": (statistics.median, ".0f"),
    "Prometheus, CPU": (min, ".1%"),
}


def measure_cost(seconds: int, rounds: int) -> None:
    """Print what the histograms cost."""
    variants = [(routes, coarse) for routes in (10, 100) for coarse in (True, False)]
    found: dict[tuple[int, bool], list[list[float]]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for routes, coarse in variants:
            with Pipeline(interval=5, coarse=coarse) as pipeline:
                found[routes, coarse].append(cost(pipeline, routes, seconds))
    print(f"| routes | buckets | {' | '.join(COLUMNS)} |\n" + "| --- " * (2 + len(COLUMNS)) + "|")
    for (routes, coarse), rows in found.items():
        cells = [
            format(choose(list(values)), form)
            for values, (choose, form) in zip(
                zip(*rows, strict=True), COLUMNS.values(), strict=True
            )
        ]
        print(f"| {routes} | {'coarse' if coarse else 'as shipped'} | {' | '.join(cells)} |")


def cost(pipeline: Pipeline, routes: int, seconds: int) -> list[float]:
    """Send traffic and return the values of the table's columns."""
    source = random.Random(1)  # noqa: S311
    scrapes, groups = [], []
    pipeline.wait_for_scrapes(2)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(scrapes) < 2:  # the first is before the histograms
        pipeline.write(
            line(f"/route-{number}", round(source.lognormvariate(4, 1)), cache)
            for number in range(routes)
            for cache in (CACHE_STATUSES if number % 3 == 0 else "-")
            for _ in range(3)
        )
        pipeline.wait_for_scrapes(2)
        if pipeline.query("up") == 1:
            scrapes.append(pipeline.query("scrape_duration_seconds") * 1000)
            groups.append(max(pipeline.group_seconds()) * 1000)
    used = [cpu(each) for each in (pipeline.exporter, pipeline.prometheus)]
    start = time.monotonic()
    pipeline.wait_for_scrapes(4)
    elapsed = time.monotonic() - start
    shares = [
        (cpu(each) - before) / elapsed
        for each, before in zip((pipeline.exporter, pipeline.prometheus), used, strict=True)
    ]
    page = pipeline.scrape()
    return [
        sum(text.startswith("nginx_") for text in page.splitlines()),
        min(scrapes[1:]),
        len(page) / 1000,
        memory(pipeline.exporter),
        shares[0],
        min(groups[1:]),
        memory(pipeline.prometheus),
        shares[1],
    ]


def cpu(process: subprocess.Popen[bytes]) -> float:
    """Seconds of CPU time of a process, all threads; computes the id as clock_getcpuclockid(3)."""
    return time.clock_gettime(~process.pid << 3 | 2)


def memory(process: subprocess.Popen[bytes]) -> float:
    """Resident megabytes of a process."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


# --- the pipeline ---


class Pipeline:
    """An access exporter, and a Prometheus with the project's rules that scrapes it.

    Args:
        interval: seconds between scrapes, and between evaluations of the rules.
        coarse: whether every histogram has the coarse buckets.
    """

    def __init__(self, interval: int, *, coarse: bool = False) -> None:
        self._stack = contextlib.ExitStack()
        self._interval = interval
        self._coarse = coarse

    def __enter__(self) -> Pipeline:
        """Start both, on free ports."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        self._log = folder / "access.log"
        self._log.touch()
        self._port, port = free_port(), free_port()
        self._prometheus_url = f"http://127.0.0.1:{port}"
        program = ["-c", COARSE] if self._coarse else ["-m", "nginx_access_exporter"]
        self.exporter = self._run(
            *(sys.executable, *program, f"--log.path={self._log}"),
            f"--web.listen-address=127.0.0.1:{self._port}",
        )
        config = folder / "prometheus.yml"
        config.write_text(
            PROMETHEUS.format(rules=RULES / "*.yml", port=self._port, interval=self._interval)
        )
        self.prometheus = self._run(
            *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"),
        )
        wait_for(lambda: self.scrape() and self.query("up") == 1)
        return self

    def __exit__(self, *_: object) -> None:
        """End both."""
        self._stack.close()

    def write(self, lines: Iterator[str]) -> None:
        """Append lines to the log."""
        with self._log.open("a") as log:
            log.write("".join(f"{text}\n" for text in lines))

    def scrape(self) -> str:
        """What the exporter serves."""
        with urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=60) as response:
            return response.read().decode()

    def wait_for_scrapes(self, number: int) -> None:
        """Wait until Prometheus has scraped and evaluated its rules this often."""
        start = self._evaluations()
        wait_for(lambda: self._evaluations() >= start + number)

    def query(self, expression: str) -> float:
        """The value of the only sample of an expression."""
        answer = self._get(f"/api/v1/query?query={quote(expression)}")
        (sample,) = answer["result"]
        return float(sample["value"][1])

    def group_seconds(self) -> list[float]:
        """How long the last evaluation of each group of rules took."""
        return [group["evaluationTime"] for group in self._get("/api/v1/rules")["groups"]]

    def _evaluations(self) -> int:
        with urlopen(f"{self._prometheus_url}/metrics", timeout=60) as response:
            for text in response.read().decode().splitlines():
                if text.startswith(f'prometheus_rule_group_iterations_total{{rule_group="{GROUP}"'):
                    return int(float(text.split()[-1]))
        return 0

    def _get(self, path: str) -> dict[str, list[dict]]:
        with urlopen(self._prometheus_url + path, timeout=60) as response:
            return json.load(response)["data"]

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        return process


def free_port() -> int:
    """A port that no program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a call returns something true."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            if condition():
                return
        time.sleep(0.1)
    sys.exit("the pipeline does not answer, or does not scrape")


if __name__ == "__main__":
    main()
