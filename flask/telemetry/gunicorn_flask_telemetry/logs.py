"""Logs as JSON, an object a line, on stderr: gunicorn's, the application's, and the requests."""

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
# No line waits longer. So much a worker that is killed leaves unwritten.
FLUSH_SECONDS = 0.1
# With more of them unwritten, nobody reads stderr: then requests wait, as they would for any log.
MOST_LINES = 10_000


def timestamp(seconds: float) -> str:
    """Return a Unix time as RFC 3339, UTC, in milliseconds."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{_second(whole)}.{milliseconds:03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class JsonFormatter(logging.Formatter):
    """A log record as a JSON object; within a request, with its id."""

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
    # Not imported: the arbiter has no use for Flask, and a reload should find it as it is by then.
    flask = sys.modules.get("flask")
    if flask is None or not flask.has_request_context():
        return None
    return flask.request.headers.get("X-Request-ID")


class JsonLogger(Logger):
    """Gunicorn's logger and the root logger, with JSON lines."""

    def setup(self, cfg: Config) -> None:
        """Set up the loggers, at the start and again at each reload."""
        super().setup(cfg)
        formatter = JsonFormatter()
        for handler in self.error_log.handlers:
            handler.setFormatter(formatter)
        logging.root.handlers = list(self.error_log.handlers)
        logging.root.setLevel(self.loglevel)
        logging.captureWarnings(capture=True)


# What the log says of a request: when it was started on, its id, method, path, route and status,
# how long it took, and the worker's slot. Times in seconds. A bare tuple, since making one costs a
# tenth of making a named one.
RequestFields = tuple[float, str | None, str, str, str, int, float, int]


def request_line(  # noqa: PLR0913, PLR0917
    started: float,
    request_id: str | None,
    method: str,
    path: str,
    route: str,
    status: int,
    duration: float,
    worker: int,
) -> str:
    """Return the JSON line of a request. What is not quoted here is known to need no escapes."""
    return (
        f'{{"time":"{timestamp(started)}","level":"info","logger":"request","message":"request",'
        f'"request_id":{quote(str(request_id)) if request_id else "null"},"method":{quote(method)},'
        f'"path":{quote(path)},"route":{quote(route)},"status":{status},'
        f'"duration":{duration:.6f},"worker":{worker}}}\n'
    )


class RequestLog:
    """One line a request, made and written a moment later by a thread that does nothing else.

    Not by way of `logging`, and not at once: making a line between two requests costs three times
    what it does among its like, and a write gives the interpreter lock away in mid-request.
    """

    def __init__(self, file: int = STDERR) -> None:
        """Start the log of this process, which is not to fork any more."""
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
        """Write what there is: whole lines, in pieces that other processes cannot cut into."""
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
            # Where these lines can't be written, the next ones may.
            with contextlib.suppress(Exception):
                self.flush()
