"""Exports what nginx's access metrics log says, by route, to Prometheus.

Counting is exactly-once: after each chunk of the log the counts and the position they reach to are
kept together in one file beside it, and only then is the chunk given back. However and whenever
the exporter ends, the next one goes on from there; its counters do not start again from zero.
"""

import argparse
import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nginx_access_exporter.log import AccessLog, Position
from nginx_access_exporter.metrics import AccessMetrics

SECONDS_BETWEEN_READS: Final = 0.5
SECONDS_BETWEEN_SAME_ERRORS: Final = 60
CHECKPOINT_VERSION: Final = 1

logger = logging.getLogger("nginx_access_exporter")


class AccessExporter(Collector):
    """Counts a log, from any thread, going on from the checkpoint beside it if there is one."""

    def __init__(self, log_path: Path) -> None:
        self._lock = threading.Lock()
        self._checkpoint = log_path.with_name(log_path.name + ".checkpoint")
        self._metrics, position = self._load()
        self._log = AccessLog(log_path, position)
        self._errors: dict[str, float] = {}

    def drain(self) -> None:
        """Counts every whole line that is in the log by now."""
        with self._lock:
            self._drain()

    def collect(self) -> Iterator[Metric]:
        """Counts what is new, then shows all."""
        with self._lock:
            self._drain()
            yield from self._metrics.collect()
            yield GaugeMetricFamily(
                "nginx_access_exporter_backlog_bytes",
                "Bytes in the log that are not counted yet.",
                value=self._log.backlog,
            )

    def _drain(self) -> None:
        try:
            for chunk in self._log.chunks():
                self._metrics.add(chunk)
                self._keep()
        except OSError as error:
            self._report(f"can't read the log: {error}")

    def _keep(self) -> None:
        """Makes sure that the last chunk is never counted again, then gives it back."""
        try:
            self._save()
        except OSError:
            # Room is made first on a full file system. Killed between the two lines, the next
            # exporter doesn't know of this chunk.
            self._log.release()
            self._save_or_forget()
        else:
            self._log.release()

    def _save_or_forget(self) -> None:
        try:
            self._save()
        except OSError as error:
            self._report(f"counters will start from 0 next time: {error}")
            # An old checkpoint would set counters back to it, and Prometheus would take
            # everything below for new.
            with contextlib.suppress(OSError):
                self._checkpoint.unlink(missing_ok=True)

    def _save(self) -> None:
        state = {
            "version": CHECKPOINT_VERSION,
            "position": self._log.position,
            "counts": self._metrics.dump(),
        }
        new = self._checkpoint.with_name(self._checkpoint.name + ".new")
        new.write_text(json.dumps(state, separators=(",", ":")))
        new.replace(self._checkpoint)

    def _load(self) -> tuple[AccessMetrics, Position | None]:
        try:
            state = json.loads(self._checkpoint.read_text())
            if state["version"] != CHECKPOINT_VERSION:
                raise ValueError(f"version {state['version']}")
            return AccessMetrics.load(state["counts"]), Position(*state["position"])
        except FileNotFoundError:
            pass
        except (OSError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s is unusable, counters start from 0: %r", self._checkpoint, error)
        return AccessMetrics(), None

    def _report(self, message: str) -> None:
        now = time.monotonic()
        if now >= self._errors.get(message, 0):
            self._errors[message] = now + SECONDS_BETWEEN_SAME_ERRORS
            logger.error(message)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the application's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def application(registry: CollectorRegistry) -> WSGIApplication:
    """Serves the registry at /metrics, in the format the client asks for, and /-/healthy."""
    # Compressing for a Prometheus that is next door costs more than it saves.
    metrics = make_wsgi_app(registry, disable_compression=True)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start_response)
        status = "200 OK" if path == "/-/healthy" else "404 Not Found"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{status}\n".encode()]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002
        logger.warning("request of %s failed", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds; a client that says nothing must not keep its thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        logger.debug(format, *args)


def listen_address(text: str) -> tuple[str, int]:
    """Reads HOST:PORT; no host means all of them.

    Raises:
        ValueError: there is no port.
    """
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--log.path",
        dest="log_path",
        type=Path,
        metavar="PATH",
        default="/var/log/nginx-metrics/access.log",
        help="the log nginx writes; the counts are kept beside it (default: %(default)s)",
    )
    parser.add_argument(
        "--web.listen-address",
        dest="address",
        type=listen_address,
        metavar="HOST:PORT",
        default=":9114",
        help="where to serve /metrics and /-/healthy (default: %(default)s)",
    )
    arguments = parser.parse_args()

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    # Blocked, and waited for between two reads: nothing is ever interrupted half-way.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    exporter = AccessExporter(arguments.log_path)
    registry = CollectorRegistry()
    registry.register(exporter)
    ProcessCollector(registry=registry)
    host, port = arguments.address
    server = make_server(host, port, application(registry), _Server, _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    logger.info("serving on %s:%d, reading %s", host, port, arguments.log_path)

    exporter.drain()
    while signal.sigtimedwait(signals, SECONDS_BETWEEN_READS) is None:
        exporter.drain()
    server.shutdown()
    exporter.drain()
    logger.info("stopped")
