"""Logs as JSON, an object a line, on stderr: gunicorn's, the application's, and the requests."""

import atexit
import json
import logging
import os
import threading
import time
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote
from select import PIPE_BUF

from gunicorn.config import Config
from gunicorn.glogging import Logger

STDERR = 2
# No line waits longer. So much a worker that is killed leaves unwritten.
FLUSH_SECONDS = 0.1


def timestamp(seconds: float) -> str:
    """Return a Unix time as RFC 3339, UTC, in milliseconds."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


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
    # Imported late: the arbiter and the metrics server have no use for Flask.
    from flask import has_request_context, request  # noqa: PLC0415

    return request.headers.get("X-Request-ID") if has_request_context() else None


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


class RequestLog:
    """One line a request, written some at a time.

    Not by way of `logging`, and not a write for each line: a record costs several times the line,
    and a write gives the interpreter lock to another thread, for which this one then waits.
    """

    def __init__(self, file: int = STDERR) -> None:
        """Start the log of this process, which is not to fork any more."""
        self._file = file
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._bytes = 0
        self._pending = threading.Event()
        threading.Thread(target=self._flush_regularly, daemon=True).start()
        atexit.register(self.flush)

    def write(  # noqa: PLR0913, PLR0917
        self,
        started: float,
        request_id: str | None,
        method: str,
        path: str,
        endpoint: str,
        status: int,
        duration: float,
        worker: int,
    ) -> None:
        """Log a request; times in seconds."""
        line = (
            f'{{"time":"{timestamp(started)}","level":"info","logger":"request",'
            f'"message":"request","request_id":{quote(request_id) if request_id else "null"},'
            f'"method":{quote(method)},"path":{quote(path)},"endpoint":{quote(endpoint)},'
            f'"status":{status},"duration":{duration:.6f},"worker":{worker}}}\n'
        )
        if self._bytes + len(line) > PIPE_BUF:
            self.flush()
        with self._lock:
            self._lines.append(line)
            self._bytes += len(line)
        if not self._pending.is_set():
            self._pending.set()

    def flush(self) -> None:
        """Write what there is."""
        with self._lock:
            lines = "".join(self._lines)
            self._lines.clear()
            self._bytes = 0
        if lines:
            os.write(self._file, lines.encode("ascii"))

    def _flush_regularly(self) -> None:
        while self._pending.wait():
            time.sleep(FLUSH_SECONDS)
            self._pending.clear()
            self.flush()
