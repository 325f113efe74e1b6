"""The logs: one JSON object a line, from every writer."""

import json
import logging
import os
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from select import PIPE_BUF

import pytest
from app import app

from gunicorn_flask_telemetry import logs


def test_record_is_one_json_object() -> None:
    record = logging.LogRecord("a", logging.WARNING, "file", 1, "two\n%s", ("lines",), None)
    record.created = 1700000000.1239
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "warning",
        "logger": "a",
        "message": "two\nlines",
        "pid": os.getpid(),
    }


def test_record_of_an_exception_has_the_traceback() -> None:
    try:
        raise RuntimeError("out of cheese")
    except RuntimeError:
        record = logging.LogRecord("a", logging.ERROR, "file", 1, "failed", (), sys.exc_info())
    assert (
        "RuntimeError: out of cheese"
        in json.loads(logs.JsonFormatter().format(record))["exception"]
    )


def test_record_within_a_request_has_its_id() -> None:
    record = logging.LogRecord("a", logging.INFO, "file", 1, "hello", (), None)
    with app.test_request_context(headers={"X-Request-ID": "0123abcd"}):
        assert json.loads(logs.JsonFormatter().format(record))["request_id"] == "0123abcd"


@pytest.fixture
def log_and_reader() -> Iterator[tuple[logs.RequestLog, socket.socket]]:
    # Each write arrives as a separate message.
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader.settimeout(10)
    with reader, writer:
        yield logs.RequestLog(writer.fileno()), reader


Log = tuple[logs.RequestLog, socket.socket]


def test_request_is_logged_as_one_json_object(log_and_reader: Log) -> None:
    log, reader = log_and_reader
    log.write((1700000000.5, None, "GET", '/"\u00e9\n', "/<path:any>", 200, 0.0123456, 3))
    assert json.loads(reader.recv(1 << 16)) == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "info",
        "logger": "request",
        "message": "request",
        "request_id": None,
        "method": "GET",
        "path": '/"\u00e9\n',
        "route": "/<path:any>",
        "status": 200,
        "duration": 0.012346,
        "worker": 3,
    }


class WatchedLog(logs.RequestLog):
    """Says when it has tried to write a line."""

    def __init__(self, file: int) -> None:
        self.tried = threading.Event()
        super().__init__(file)

    def _write(self, lines: list[str]) -> None:
        try:
            super()._write(lines)
        finally:
            self.tried.set()


def test_log_continues_after_a_failed_write() -> None:
    reader, writer = socket.socketpair()
    log = WatchedLog(writer.fileno())
    reader.close()  # now writing fails
    log.write((0, None, "GET", "/lost", "/", 200, 0.001, 1))
    assert log.tried.wait(10)
    reader, other = socket.socketpair()
    reader.settimeout(10)
    with reader, other, writer:
        os.dup2(other.fileno(), writer.fileno())
        log.write((0, uuid.UUID(int=1), "GET", "/next", "/", 200, 0.001, 1))
        fields = json.loads(reader.recv(1 << 16))
        assert (fields["path"], fields["request_id"]) == ("/next", str(uuid.UUID(int=1)))


def test_lines_are_written_whole_and_atomically(log_and_reader: Log) -> None:
    log, reader = log_and_reader
    for number in range(100):
        log.write((0, f"{number:032x}", "GET", "/", "/", 200, 0.001, 1))
    numbers = []
    while len(numbers) < 100:
        message = reader.recv(1 << 16)
        assert len(message) <= PIPE_BUF
        assert message.endswith(b"\n")
        numbers += [int(json.loads(line)["request_id"], 16) for line in message.splitlines()]
    assert numbers == list(range(100))
