"""What Prometheus costs as the stack grows: series by a formula, then measured with fake replicas.

The fake targets serve what a real flask-app, nginx-access-exporter and nginx-exporter served, with
counters that grow. A real Prometheus with the project's rules scrapes them every 5 s.

    .local/venv/bin/python -m tests.bench.growth [--replicas 1 10 100] [--seconds 180]
        [--prometheus PATH]

Samples of 20 minutes (--seconds 1200) make a block about as dense as one of two hours.
"""

from __future__ import annotations

import argparse
import http.server
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
import yaml

from local.settings import BIN, ROOT
from tests.bench.top_queries import cpu_seconds
from tests.servers import running
from tests.stacks import Stack, free_port, launch, wait_until

ROUTES = 30  # a third of them cached
REPLICAS_OF_NGINX = 10  # so many replicas of flask-app have an nginx and its exporters
WORKERS = 3
SCRAPE_SECONDS = 5
WARM_SECONDS = 60
COLUMNS = (
    "replicas",
    "series scraped",
    "series of rules",
    "samples/s",
    "memory",
    "CPU of one core",
    "write-ahead log per hour",
    "bytes per sample in a block",
    "slowest group of rules",
    "evaluations missed",
)

# Series that Prometheus adds to each target: up and four named scrape_*.
OF_TARGET = 5
BUCKETS, FINE_BUCKETS = 14, 49  # with +Inf
SUM_AND_COUNT = 2


def flask_app(routes: int, outcomes: int, workers: int) -> int:
    """The series of one replica of flask-app.

    Args:
        routes: that have been asked for.
        outcomes: pairs of a route and a method or status that have occurred.
        workers: gunicorn's.
    """
    fixed = 29
    return routes * (BUCKETS + SUM_AND_COUNT) + outcomes + 6 * workers + fixed + OF_TARGET


def nginx_unit(by_cache: int, outcomes: int, upstream: int, attempts: int) -> int:
    """The series of an nginx and its two exporters.

    Args:
        by_cache: pairs of a route and a cache status that have occurred.
        outcomes: the same, with each method and status.
        upstream: routes that Flask answered.
        attempts: pairs of a route and the status of an attempt.
    """
    answers = by_cache * (FINE_BUCKETS + SUM_AND_COUNT + 1) + outcomes  # 1: bytes
    phases = (BUCKETS, FINE_BUCKETS, BUCKETS)  # connect, header, response
    waits = upstream * sum(buckets + SUM_AND_COUNT for buckets in phases) + attempts
    exporter, stub_status, page = 17, 9, 1
    return answers + waits + exporter + stub_status + page + 3 * OF_TARGET


def sizes(stack: Stack) -> tuple[int, int]:
    """What the formula says of a running stack with one replica: flask-app, and the nginx unit."""

    def count(service: str, name: str) -> int:
        return len(re.findall(rf"^{name}\{{", stack.metrics(service), re.MULTILINE))

    app, exporter = "flask-app", "nginx-access-exporter"
    return (
        flask_app(
            count(app, "flask_http_request_duration_seconds_count"),
            count(app, "flask_http_request_total"),
            count(app, "gunicorn_worker_busy_seconds_total"),
        ),
        nginx_unit(
            count(exporter, "nginx_route_request_duration_seconds_count"),
            count(exporter, "nginx_route_requests_total"),
            count(exporter, "nginx_route_upstream_header_duration_seconds_count"),
            count(exporter, "nginx_route_upstream_attempts_total"),
        ),
    )


def bodies() -> dict[str, str]:
    """What the services of a real stack serve after some traffic, made into ROUTES routes."""
    with launch("local", {"GUNICORN_WORKERS": str(WORKERS)}) as stack:
        for number in range(40):
            for path in ("/info", "/cache-me", f"/cache-me?{number}"):
                requests.get(stack.http + path, timeout=10)
        wait_until(
            lambda: stack.total("nginx-access-exporter", "nginx_route_requests_total") == 3 * 40,
            20,
            "all lines to be counted",
        )
        names = ("flask-app", "nginx-access-exporter", "nginx-exporter")
        return {name: multiplied(stack.metrics(name)) for name in names}


def multiplied(body: str) -> str:
    """The metrics with ROUTES routes in place of two: a third of /cache-me, the rest of /info."""
    lines = []
    for line in body.splitlines():
        if 'route="/info"' in line:
            kept = range(ROUTES // 3, ROUTES)
        elif 'route="/cache-me"' in line:
            kept = range(ROUTES // 3)
        else:
            lines.append(line)
            continue
        lines += [re.sub(r'route="[^"]*"', f'route="/r{number}"', line) for number in kept]
    return "\n".join(lines) + "\n"


class Targets(http.server.ThreadingHTTPServer):
    """Serves each body at its service's path, with counters that grow."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._lines = {
            name: [_split(line) for line in text.splitlines()] for name, text in texts.items()
        }
        self._made: dict[tuple[str, int], bytes] = {}
        self._began = time.monotonic()

    def body(self, name: str) -> bytes:
        """The metrics of now; the same for all replicas within a second, to save CPU time."""
        second = int(time.monotonic() - self._began)
        if (name, second) not in self._made:
            lines = (
                text if grows is None else f"{text}{grows * (60 + second)}"
                for text, grows in self._lines[name]
            )
            self._made = {key: each for key, each in self._made.items() if key[1] == second}
            self._made[name, second] = ("\n".join(lines) + "\n").encode()
        return self._made[name, second]


def _split(line: str) -> tuple[str, float | None]:
    """A line, or a counter's line without its value, and that value."""
    found = re.fullmatch(r"(\w+(?:_total|_bucket|_count|_sum)(?:\{.*\})? )(\S+)", line)
    return (found[1], float(found[2])) if found else (line, None)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Targets
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.server.body(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def prometheus(
    program: Path, folder: Path, address: str, replicas: int
) -> Iterator[tuple[str, int]]:
    """Run a Prometheus that scrapes so many replicas; yields its URL and its process's id."""
    jobs = {"flask-app": replicas}
    jobs |= dict.fromkeys(
        ("nginx-access-exporter", "nginx-exporter"), -(-replicas // REPLICAS_OF_NGINX)
    )
    config = {
        "global": {
            "scrape_interval": f"{SCRAPE_SECONDS}s",
            "scrape_timeout": "4s",
            "evaluation_interval": "5s",
        },
        "rule_files": [str(ROOT / "prometheus" / "rules" / "*.yml")],
        "scrape_configs": [
            {
                "job_name": job,
                "metrics_path": f"/{job}",
                "static_configs": [
                    {"targets": [address], "labels": {"instance": f"{job}-{number}"}}
                    for number in range(count)
                ],
            }
            for job, count in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.enable-admin-api",
        "--log.level=error",
    ]
    with running(command, f"{url}/-/ready", 60) as pid:
        yield url, pid


def value(url: str, query: str) -> float:
    """The one value of an instant query; NaN if there is none."""
    answer = requests.get(f"{url}/api/v1/query", {"query": query}, timeout=60).json()
    found = answer["data"]["result"]
    return float(found[0]["value"][1]) if found else float("nan")


def own(url: str, name: str) -> float:
    """The sum of one of Prometheus' own metrics, over all its labels."""
    text = requests.get(f"{url}/metrics", timeout=60).text
    return sum(
        float(each) for each in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)", text, re.MULTILINE)
    )


def slowest_group(url: str) -> tuple[float, str]:
    """The seconds of the group of rules that took longest, its name, and its slowest rule."""
    groups = requests.get(f"{url}/api/v1/rules", timeout=60).json()["data"]["groups"]
    group = max(groups, key=lambda each: each["evaluationTime"])
    rule = max(group["rules"], key=lambda each: each["evaluationTime"])
    words = f"{group['name']} ({rule['name']} {rule['evaluationTime']:.2f} s)"
    return group["evaluationTime"], words


def block_bytes(url: str, data: Path) -> int:
    """The size of a block with all samples so far. Prometheus itself writes the first after 2 h."""
    made = requests.post(f"{url}/api/v1/admin/tsdb/snapshot", timeout=300).json()["data"]["name"]
    files = (data / "snapshots" / made).rglob("*")
    return sum(each.stat().st_size for each in files if each.is_file())


def measure(program: Path, targets: Targets, replicas: int, seconds: int) -> None:
    """Print a row of the table."""
    address = "{}:{}".format(*targets.server_address)
    with (
        tempfile.TemporaryDirectory() as name,
        prometheus(program, Path(name), address, replicas) as (url, pid),
    ):
        time.sleep(WARM_SECONDS)  # until the rates of a minute are whole
        began, cpu = time.monotonic(), cpu_seconds(pid)
        samples = own(url, "prometheus_tsdb_head_samples_appended_total")
        slowest = (0.0, "")
        while time.monotonic() < began + seconds:
            time.sleep(SCRAPE_SECONDS)
            slowest = max(slowest, slowest_group(url))
        passed = time.monotonic() - began
        stored = own(url, "prometheus_tsdb_head_samples_appended_total")
        scraped = value(url, 'count({job!="", __name__!~".*:.*|ALERTS.*"})')
        recorded = value(url, 'count({__name__=~".*:.*|ALERTS.*"})')
        missed = own(url, "prometheus_rule_group_iterations_missed_total")
        memory = own(url, "process_resident_memory_bytes")
        wal = sum(
            each.stat().st_size for each in Path(name, "data", "wal").iterdir() if each.is_file()
        )
        block = block_bytes(url, Path(name, "data"))
        cells = [
            f"{replicas}",
            f"{scraped:,.0f}",
            f"{recorded:,.0f}",
            f"{(stored - samples) / passed:,.0f}",
            f"{memory / 1e6:,.0f} MB",
            f"{(cpu_seconds(pid) - cpu) / passed:.1%}",
            f"{wal / (passed + WARM_SECONDS) * 3.6e-3:,.0f} MB",
            f"{block / stored:.2f}",
            f"{slowest[0]:.2f} s: {slowest[1]}",
            f"{missed:.0f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--seconds", type=int, default=180, help="for each number of replicas")
    parser.add_argument("--prometheus", type=Path, default=BIN / "prometheus")
    arguments = parser.parse_args()
    targets = Targets(bodies())
    threading.Thread(target=targets.serve_forever, daemon=True).start()
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for replicas in arguments.replicas:
        measure(arguments.prometheus, targets, replicas, arguments.seconds)


if __name__ == "__main__":
    main()
