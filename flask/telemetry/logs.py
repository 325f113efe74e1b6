"""Logs as JSON, an object a line, on stderr: gunicorn's, the application's, and the requests."""

import json
import logging
import os
import time
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote

from gunicorn.config import Config
from gunicorn.glogging import Logger

STDERR = 2


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


def log_request(  # noqa: PLR0913, PLR0917
    started: float,
    request_id: str | None,
    method: str,
    path: str,
    endpoint: str,
    status: int,
    duration: float,
    worker: int,
) -> None:
    """Write a request's line; times in seconds.

    Not by way of `logging`: a record, its lock and its formatting cost several times this.
    """
    method, path = quote(method), quote(path)
    line = (
        f'{{"time":"{timestamp(started)}","level":"info","logger":"request",'
        f'"message":"request","request_id":{quote(request_id) if request_id else "null"},'
        f'"method":{method},"path":{path},"endpoint":{quote(endpoint)},"status":{status},'
        f'"duration":{duration:.6f},"worker":{worker}}}\n'
    )
    os.write(STDERR, line.encode("ascii"))
