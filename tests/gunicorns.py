"""A gunicorn for tests: the project's own settings, an app of tests/apps, and no nginx."""

import contextlib
import itertools
import os
import signal as signals
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families

from gunicorn_flask_telemetry import slots
from tests.stacks import ROOT, children, free_port, wait_until

CONFIG = ROOT / "flask" / "gunicorn.conf.py"
# The command line of the process that serves the metrics contains this.
METRICS_SERVER = "gunicorn_flask_telemetry.server"
START_SECONDS = STOP_SECONDS = 30


class Gunicorn:
    """A running gunicorn."""

    def __init__(self, directory: Path, settings: dict[str, str], config: Path = CONFIG) -> None:
        """Start it with `settings` as environment; its log and its counts go to `directory`."""
        port, metrics_port = free_port(), free_port()
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self.counts = directory / "counts"
        self.log_file = directory / "log"
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "tests" / "apps"),
            "WSGI_APP": "gated:app",
            "GUNICORN_BIND": f"127.0.0.1:{port}",
            # A worker may miss a signal to end while it boots. Then only this timeout ends it.
            "GUNICORN_GRACEFUL_TIMEOUT": "5",
            # A request that waits long on a busy machine must reach the app.
            "GUNICORN_QUEUE_TIMEOUT": "0",
            # One import of the app for all workers: starts take half the CPU time.
            "GUNICORN_PRELOAD_APP": "true",
            "GUNICORN_METRICS_BIND": f"127.0.0.1:{metrics_port}",
            "PROMETHEUS_MULTIPROC_DIR": str(self.counts),
            **settings,
        }
        self.url = f"http://{environ['GUNICORN_BIND']}"
        command = [sys.executable, "-m", "gunicorn", "--config", config]
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT / "flask", env=environ, stdout=log, stderr=log
            )

    def wait_until_up(self) -> None:
        """Wait until every worker has booted, metrics are served and no request is in flight."""
        wait_until(self._is_up, START_SECONDS, "gunicorn is up")
        idle_metrics(self)

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log_file.read_text()
        metrics = self.metrics()
        return metrics["gunicorn_workers"] == metrics["gunicorn_workers_configured"] and self.get()

    def get(self, path: str = "/", **options: object) -> requests.Response:
        """Send a GET request to the application."""
        return self.ask("GET", path, **options)

    def ask(self, method: str, path: str, **options: object) -> requests.Response:
        """Send a request with this method to the application."""
        return requests.request(method, self.url + path, timeout=60, **options)

    @contextlib.contextmanager
    def held_requests(
        self, times: int, getters: Sequence[Callable[..., requests.Response]] = (requests.get,)
    ) -> Iterator[list[Future[requests.Response]]]:
        """Send requests that last as long as the context; yield the futures of their responses.

        Args:
            times: the number of requests.
            getters: functions that send them alternately: the `get` of requests or of a session.
        """
        # At the end the file is removed first; then the pool waits for the responses.
        with ThreadPoolExecutor(times) as pool, tempfile.NamedTemporaryFile() as gate:
            url = f"{self.url}/?gate={gate.name}"
            senders = itertools.islice(itertools.cycle(getters), times)
            yield [pool.submit(get, url, timeout=60) for get in senders]

    def scrape(self) -> str:
        """Return the metrics as Prometheus gets them."""
        response = requests.get(self._metrics_url, timeout=10)
        response.raise_for_status()
        return response.text

    def metrics(self) -> dict[str, float]:
        """Return the samples of a scrape by their name and labels: `name{label="value"}`."""
        return {
            _series(sample.name, sample.labels): sample.value
            for family in text_string_to_metric_families(self.scrape())
            for sample in family.samples
        }

    def children(self) -> list[int]:
        """Return the pids of the arbiter's children."""
        return children(self.process.pid)

    def workers(self) -> dict[str, int]:
        """Return the pids of the workers by slot."""
        forked = self.children()
        readings = slots.read_all(self.counts)
        return {str(each.number): each.pid for each in readings if each.pid in forked}

    def metrics_server(self) -> int | None:
        """Return the pid of the process that serves the metrics."""
        return next(
            (pid for pid in children(self.process.pid) if METRICS_SERVER.encode() in _command(pid)),
            None,
        )

    def signal(self, signal: signals.Signals) -> None:
        """Send a signal to the arbiter."""
        self.process.send_signal(signal)

    def stop(self) -> None:
        """Stop it as an operator would, without waiting for connections."""
        self.signal(signals.SIGQUIT)
        self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """Kill it and its children, which is faster than to stop it."""
        if self.process.poll() is not None:
            return
        self.signal(signals.SIGSTOP)  # it must not replace its workers meanwhile
        for pid in [self.process.pid, *self.children()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signals.SIGKILL)
        self.process.wait(STOP_SECONDS)


@contextlib.contextmanager
def gunicorn(config: Path = CONFIG, **settings: str) -> Iterator[Gunicorn]:
    """Run a gunicorn with these environment variables."""
    with tempfile.TemporaryDirectory(prefix="gunicorn-") as directory:
        running = Gunicorn(Path(directory), settings, config)
        try:
            running.wait_until_up()
            yield running
        finally:
            running.kill()


def wait_for_metrics(
    running: Gunicorn, condition: Callable[[dict[str, float]], object], what: str
) -> dict[str, float]:
    """Scrape until `condition` holds, and return that scrape."""

    def matching() -> dict[str, float] | None:
        metrics = running.metrics()
        return metrics if condition(metrics) else None

    return wait_until(matching, 30, what)


def idle_metrics(running: Gunicorn) -> dict[str, float]:
    """Scrape when no request is in flight: gunicorn answers a request just before it counts it."""
    in_flight = "gunicorn_worker_requests_in_flight"
    return wait_for_metrics(running, lambda m: total(m, in_flight) == 0, "no request in flight")


def total(metrics: dict[str, float], name: str) -> float:
    """Return the sum of all series of this name."""
    return sum(value for series, value in metrics.items() if series.partition("{")[0] == name)


def _series(name: str, labels: dict[str, str]) -> str:
    pairs = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{pairs}}}" if pairs else name


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""  # it has just ended
