"""The cost of the telemetry per request: an application without, with the library's, with ours.

Needs wrk, and the packages of flask/requirements.txt. The three run side by side and get load
alternately, so that a busy machine slows all of them: compare only numbers of the same run. The
cost is the workers' CPU time; wall-clock time would include wrk and other processes.

    python tests/bench/telemetry_cost.py [--rounds 30] [--seconds 1]
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

FLASK = Path(__file__).parents[2] / "flask"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
WORKERS, THREADS, CONNECTIONS = 2, 4, 8
FIRST_PORT = 23100
# nginx sends these headers, so handling them is part of the cost.
HEADERS = {
    "Host": "localhost",
    "X-Real-IP": "192.0.2.1",
    "X-Forwarded-For": "192.0.2.1",
    "X-Forwarded-Proto": "http",
    "X-Request-ID": "0123456789abcdef0123456789abcdef",
}

HELLO = """
from flask import Flask
app = Flask(__name__)

@app.get("/")
def hello():
    return "Hello World!"
"""
SETTINGS = f"""
worker_class, workers, threads = "gthread", {WORKERS}, {THREADS}
"""
# Name of the variant: its application, its gunicorn.conf.py.
VARIANTS = {
    "bare": (HELLO, SETTINGS),
    "library": (
        HELLO
        + """
from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics
GunicornPrometheusMetrics(app)
""",
        SETTINGS
        + """
from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics
when_ready = lambda server: GunicornPrometheusMetrics.start_http_server_when_ready(
    int(__import__("os").environ["METRICS_PORT"]))
child_exit = lambda server, worker: (
    GunicornPrometheusMetrics.mark_process_dead_on_child_exit(worker.pid))
""",
    ),
    "ours": (
        HELLO
        + """
from gunicorn_flask_telemetry.flask_metrics import FlaskMetrics
FlaskMetrics(app)
""",
        SETTINGS
        + """
from gunicorn_flask_telemetry.hooks import *
""",
    ),
}


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=int, default=1, help="of load per variant and round")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(_server(FIRST_PORT + 2 * index, *variant))
            for index, (name, variant) in enumerate(VARIANTS.items())
        }
        costs: dict[str, list[float]] = {name: [] for name in servers}
        for round_number in range(arguments.rounds + 1):
            for name, (port, arbiter) in servers.items():
                cost = _load(port, arbiter, arguments.seconds)
                if round_number:  # round 0 only warms up
                    costs[name].append(cost)
    _print(costs)


def _print(costs: dict[str, list[float]]) -> None:
    print("| | us/request | added | middle half of the rounds |")
    print("| --- | --- | --- | --- |")
    for name, measured in costs.items():
        # Each round's difference from the bare application in the same round.
        added = [cost - bare for cost, bare in zip(measured, costs["bare"], strict=True)]
        lower, median, upper = statistics.quantiles(added, n=4)
        print(
            f"| {name} | {statistics.median(measured):.0f} "
            f"| {median:+.0f} | {lower:+.0f} to {upper:+.0f} |"
        )


def _load(port: int, arbiter: int, seconds: int) -> float:
    """Return the workers' CPU time per request, in microseconds."""
    workers = _children(arbiter)
    before = sum(map(_cpu_seconds, workers))
    headers = [part for item in HEADERS.items() for part in ("-H", ": ".join(item))]
    headers += ["-H", f"X-Request-Start: {time.time():.3f}"]
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", *headers]
    output = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/"], check=True, capture_output=True, text=True
    ).stdout
    cpu_seconds = sum(map(_cpu_seconds, workers)) - before
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(output)
    return cpu_seconds / int(re.search(r"(\d+) requests in", output)[1]) * 1e6


def _children(pid: int) -> list[int]:
    """Return the workers: the children except the metrics server."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"gunicorn_flask_telemetry.server" not in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


@contextmanager
def _server(port: int, application: str, settings: str) -> Iterator[tuple[int, int]]:
    """Run gunicorn; yield its port and the arbiter's pid."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "hello.py").write_text(application)
        (directory / "gunicorn.conf.py").write_text(settings)
        counts = directory / "counts"
        counts.mkdir()
        environ = {
            **os.environ,
            "PYTHONPATH": str(FLASK / "telemetry"),
            "PROMETHEUS_MULTIPROC_DIR": str(counts),
            "METRICS_PORT": str(port + 1),
            "GUNICORN_METRICS_BIND": f"127.0.0.1:{port + 1}",
        }
        command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "hello:app"]
        with (directory / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=directory, env=environ, stderr=log)
        try:
            _wait_until_up(port, process, directory / "log")
            yield port, process.pid
        finally:
            process.terminate()
            process.wait()


def _wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(log.read_text())
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main()
