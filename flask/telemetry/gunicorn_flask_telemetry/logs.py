"""JSON logs on stderr, one object a line: gunicorn's, the application's, and the requests."""

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote
from queue import Empty, SimpleQueue
from select import PIPE_BUF

from gunicorn.config import Config
from gunicorn.glogging import Logger

STDERR = 2
# No line waits longer than this. A killed worker loses up to this much of its log.
FLUSH_SECONDS = 0.1
# If more lines than this wait, stderr is blocked. Requests then write to it, and wait for it too.
MOST_LINES = 10_000


def timestamp(seconds: float) -> str:
    """Return a Unix time as RFC 3339, UTC, in milliseconds."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{_second(whole)}.{milliseconds:03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class JsonFormatter(logging.Formatter):
    """Formats a log record as a JSON object, with the request's id if there is a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        fields = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if request_id := _request_id():
            fields["request_id"] = request_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _request_id() -> str | None:
    # Not imported here: the arbiter needs no Flask, and a reload should load the current version.
    flask = sys.modules.get("flask")
    if flask is None or not flask.has_request_context():
        return None
    return flask.request.headers.get("X-Request-ID")


class JsonLogger(Logger):
    """Makes gunicorn's logger and the root logger write JSON lines."""

    def setup(self, cfg: Config) -> None:
        """Set up the loggers, at the start and again at each reload."""
        super().setup(cfg)
        formatter = JsonFormatter()
        for handler in self.error_log.handlers:
            handler.setFormatter(formatter)
        logging.root.handlers = list(self.error_log.handlers)
        logging.root.setLevel(self.loglevel)
        logging.captureWarnings(capture=True)


# A request in the log: start (Unix time), id, method, path, route, status, duration in seconds, the
# worker's slot, and why the application did not run it, if so. A plain tuple, since a named one
# costs ten times as much to make.
RequestFields = tuple[float, str | None, str, str, str, int, float, int, str | None]


def request_line(  # noqa: PLR0913, PLR0917
    started: float,
    request_id: str | None,
    method: str,
    path: str,
    route: str,
    status: int,
    duration: float,
    worker: int,
    shed: str | None = None,
) -> str:
    """Return the JSON line of a request. Values that are not quoted here never need escapes."""
    reason = f',"shed":{quote(shed)}' if shed else ""
    return (
        f'{{"time":"{timestamp(started)}","level":"info","logger":"request","message":"request",'
        f'"request_id":{quote(str(request_id)) if request_id else "null"},"method":{quote(method)},'
        f'"path":{quote(path)},"route":{quote(route)},"status":{status},'
        f'"duration":{duration:.6f},"worker":{worker}{reason}}}\n'
    )


class RequestLog:
    """Logs one line a request. A thread of its own formats and writes the lines, in batches.

    Formatting a single line between two requests costs three times as much as in a batch, and a
    write in the middle of a request would release the interpreter lock.
    """

    def __init__(self, file: int = STDERR) -> None:
        """Start the log of this process, which must not fork afterwards."""
        self._file = file
        self._lines: SimpleQueue[RequestFields] = SimpleQueue()
        self._pending = threading.Event()
        threading.Thread(target=self._flush_regularly, daemon=True).start()
        atexit.register(self.flush)

    def write(self, request: RequestFields) -> None:
        """Log a request."""
        self._lines.put(request)
        if not self._pending.is_set():
            self._pending.set()
        elif self._lines.qsize() > MOST_LINES:
            self.flush()

    def flush(self) -> None:
        """Write all waiting lines, in pieces of whole lines that the kernel writes atomically."""
        piece: list[str] = []
        octets = 0
        for request in self._take():
            line = request_line(*request)
            if octets + len(line) > PIPE_BUF:
                self._write(piece)
                piece, octets = [], 0
            piece.append(line)
            octets += len(line)
        self._write(piece)

    def _write(self, lines: list[str]) -> None:
        octets = "".join(lines).encode("ascii")
        while octets:
            octets = octets[os.write(self._file, octets) :]

    def _take(self) -> Iterator[RequestFields]:
        with contextlib.suppress(Empty):
            while True:
                yield self._lines.get_nowait()

    def _flush_regularly(self) -> None:
        while self._pending.wait():
            time.sleep(FLUSH_SECONDS)
            self._pending.clear()
            # A failed write loses these lines only; the next write may succeed.
            with contextlib.suppress(Exception):
                self.flush()
