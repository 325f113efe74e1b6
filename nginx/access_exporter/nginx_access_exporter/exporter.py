"""Exports nginx's requests by route and cache status to Prometheus, from an access metrics log.

Every line is counted exactly once. After each chunk of the log, the exporter saves its counts
together with the position they reach, in one file beside the log, and only then frees the chunk.
Even after a kill, the next exporter continues from that position, and no counter starts from zero.
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

from nginx_access_exporter import __version__
from nginx_access_exporter.cache import CacheMetrics, Zone, zones
from nginx_access_exporter.certificate import CertificateCollector
from nginx_access_exporter.cgroup import CgroupCollector
from nginx_access_exporter.line import LINE_STARTS, MARKERS
from nginx_access_exporter.log import AccessLog, ForeignLogError, Position
from nginx_access_exporter.metrics import AccessMetrics

try:
    from nginx_access_exporter._revision import REVISION  # hatch_build.py writes it
except ImportError:
    REVISION = "unknown"

SECONDS_BETWEEN_READS: Final = 0.5
SECONDS_BETWEEN_SAME_ERRORS: Final = 60
CHECKPOINT_VERSION: Final = 1

DESCRIPTION: Final = f"""
Exports nginx's requests by route and cache status to Prometheus. It reads an access log in the
format {MARKERS} (see the README) and CONSUMES it: what was read is erased from the file. A file in
another format is refused and not changed.
"""

logger = logging.getLogger("nginx_access_exporter")


class AccessExporter(Collector):
    """Counts a log, going on from the checkpoint beside it if there is one; thread-safe."""

    def __init__(self, log_path: Path) -> None:
        self._lock = threading.Lock()
        self._checkpoint = log_path.with_name(log_path.name + ".checkpoint")
        self._metrics, position = self._load()
        self._log = AccessLog(log_path, LINE_STARTS, position)
        self._errors: dict[str, float] = {}

    def start(self) -> None:
        """Counts every whole line in the log.

        Raises:
            ForeignLogError: the file is not an access metrics log; nothing in it was changed.
        """
        with self._lock:
            self._count()

    def drain(self) -> None:
        """Counts every whole line in the log, and reports a file that is not such a log."""
        with self._lock:
            self._drain()

    def collect(self) -> Iterator[Metric]:
        """Counts the new lines, then yields all metrics."""
        with self._lock:
            self._drain()
            yield build_info()
            yield from self._metrics.collect()
            yield GaugeMetricFamily(
                "nginx_access_exporter_backlog_bytes",
                "Bytes in the log that are not counted yet.",
                value=self._log.backlog,
            )

    def _drain(self) -> None:
        try:
            self._count()
        except ForeignLogError as error:
            self._report(str(error))

    def _count(self) -> None:
        try:
            for chunk in self._log.chunks():
                self._metrics.add(chunk)
                self._keep()
        except OSError as error:
            self._report(f"can't read the log: {error}")

    def _keep(self) -> None:
        """Makes sure that the last chunk is never counted again, then frees it."""
        try:
            self._save()
        except OSError:
            # A full file system needs room first. An exporter killed between these two lines loses
            # the chunk.
            self._log.release()
            self._save_or_forget()
        else:
            self._log.release()

    def _save_or_forget(self) -> None:
        try:
            self._save()
        except OSError as error:
            self._report(f"counters will start from 0 after a restart: {error}")
            # With an old checkpoint, counters would go down to its values, and Prometheus would
            # count these once more.
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
            logger.warning("can't use %s, counters start from 0: %r", self._checkpoint, error)
        return AccessMetrics(), None

    def _report(self, message: str) -> None:
        now = time.monotonic()
        if now >= self._errors.get(message, 0):
            self._errors[message] = now + SECONDS_BETWEEN_SAME_ERRORS
            logger.error(message)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
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
    """Serves the registry at /metrics, in the format that the client asks for, and /-/healthy."""
    # Prometheus is usually near: compression costs more than it saves.
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
    timeout = 10  # seconds; a client that sends nothing must not keep its thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        logger.debug(format, *args)


def build_info() -> Metric:
    """Returns the metric that names the version and the revision it was built from."""
    family = GaugeMetricFamily(
        "nginx_access_exporter_build_info",
        "Version of the exporter, and the revision it was built from; always 1.",
        labels=("version", "revision"),
    )
    family.add_metric((__version__, REVISION), 1)
    return family


def listen_address(text: str) -> tuple[str, int]:
    """Reads HOST:PORT; an empty host means all addresses.

    Raises:
        ValueError: the port is missing or not a number.
    """
    host, _, port = text.rpartition(":")
    return host, int(port)


def caches(path: str) -> list[Zone]:
    """Reads the caches of a configuration file.

    Raises:
        ArgumentTypeError: the file can't be read, or a directive is not understood.
    """
    try:
        return zones(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main() -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status."""
    arguments = parse_arguments()
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    # The signals are blocked and waited for between two reads, so that they interrupt no read.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    exporter = AccessExporter(arguments.log_path)
    cache_metrics = CacheMetrics(arguments.caches, arguments.log_path.parent)
    metrics = registry(exporter, cache_metrics, CgroupCollector())
    if arguments.tls_address:
        metrics.register(CertificateCollector(arguments.tls_address))
    host, port = arguments.address
    try:
        exporter.start()
        server = make_server(host, port, application(metrics), _Server, _Handler)
    except ForeignLogError as error:
        logger.error(error)
        return 1
    except OSError as error:
        logger.error("can't listen on %s:%d: %s", host, port, error.strerror or error)
        return 1
    logger.info("serving on %s:%d, reading %s", host, port, arguments.log_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cache_metrics.start()

    while signal.sigtimedwait(signals, SECONDS_BETWEEN_READS) is None:
        exporter.drain()
    server.shutdown()
    exporter.drain()
    logger.info("stopped")
    return 0


def registry(*collectors: Collector) -> CollectorRegistry:
    """Returns a registry with these metrics and those of this process."""
    new = CollectorRegistry()
    for collector in collectors:
        new.register(collector)
    ProcessCollector(registry=new)
    return new


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="nginx-access-exporter", description=DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument(
        "--log.path",
        dest="log_path",
        type=Path,
        metavar="PATH",
        default="/var/log/nginx-metrics/access.log",
        help="the access metrics log; the counts are saved beside it (default: %(default)s)",
    )
    parser.add_argument(
        "--web.listen-address",
        dest="address",
        type=listen_address,
        metavar="HOST:PORT",
        default=":9114",
        help="where to serve /metrics and /-/healthy (default: %(default)s)",
    )
    parser.add_argument(
        "--cache.config",
        dest="caches",
        type=caches,
        metavar="FILE",
        default=[],
        help="nginx configuration file with proxy_cache_path directives, whose folders are scanned "
        "for the nginx_cache_* metrics; ${NAME} is taken from the environment (default: no caches)",
    )
    parser.add_argument(
        "--tls.address",
        dest="tls_address",
        type=listen_address,
        metavar="HOST:PORT",
        help="where nginx serves TLS, to export when its certificate expires "
        "(default: not exported)",
    )
    version = f"%(prog)s {__version__} (revision {REVISION})"
    parser.add_argument("--version", action="version", version=version)
    return parser.parse_args()
