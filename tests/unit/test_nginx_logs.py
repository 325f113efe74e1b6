"""nginx's logs of hostile requests, with the project's configuration, as ./stack shows them."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local.console import escaped, show
from local.render import render
from local.settings import DEFAULT_PORTS, environment, settings
from tests.servers import nginx_command
from tests.stacks import free_port, wait_until

# An escape sequence that clears a terminal, bytes that are not UTF-8, and a right-to-left override.
HOSTILE = b"\x1b[2J\xff\xfe\xe2\x80\xae\x9b"


class Nginx:
    """A running nginx without Flask behind it."""

    def __init__(self, folder: Path, values: dict[str, str]) -> None:
        ports = {name: str(free_port()) for name in DEFAULT_PORTS}
        env = environment(settings() | ports | values, folder)
        render(env)
        self.log = folder / "log"
        self._port = int(ports["HTTP_PORT"])
        command = nginx_command(env, env["NGINX_RUN_DIR"])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def send(self) -> None:
        """Send a request with hostile headers; nginx answers it with 502."""
        headers = b"User-Agent: %b\r\nReferer: %b\r\n" % (HOSTILE, HOSTILE)
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as client:
            client.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n%b\r\n" % headers)
            assert b" 502 " in client.recv(65536)

    def access_line(self) -> bytes:
        """The line in the access log; empty as long as there is none."""
        lines = self.log.read_bytes().splitlines()
        return next((line for line in lines if line.startswith(b"{")), b"")


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    """Starts nginx with settings; it has answered a hostile request, and logged it."""
    started: list[Nginx] = []

    def start(**values: str) -> Nginx:
        running = Nginx(tmp_path, values)
        started.append(running)

        def answered() -> bool:
            try:
                running.send()
            except OSError:
                return False
            return True

        wait_until(answered, 60, "nginx")
        wait_until(running.access_line, 60, "the line")
        return running

    yield start
    for running in started:
        running.process.terminate()
        running.process.wait()


def test_stack_shows_valid_json_and_no_control_characters(
    nginx: Callable[..., Nginx], capfd: pytest.CaptureFixture[str]
) -> None:
    running = nginx()
    raw = running.log.read_bytes()
    assert b"\x1b[2J" in raw  # nginx's error log copies the Referer
    with pytest.raises(UnicodeDecodeError):
        running.access_line().decode()
    assert show(["cat", running.log], running.log.parent) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == len(raw.splitlines())
    assert all(line.isprintable() for line in lines)
    (fields, *_) = (json.loads(line) for line in lines if line.startswith("{"))
    assert fields["user_agent"] == HOSTILE.decode(errors="replace")
    assert fields["remote_addr"] == "127.0.0.1"
    assert any("\\u001b[2J" in line for line in lines if not line.startswith("{"))


def test_addresses_can_be_kept_out_of_the_access_log(nginx: Callable[..., Nginx]) -> None:
    fields = json.loads(escaped(nginx(NGINX_LOG_ADDRESSES="false").access_line()))
    assert fields["remote_addr"] == "-"
    assert "127.0.0.1" not in fields.values()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"plain \xc3\xa9\ttext\n", "plain \u00e9\ttext"),
        (b"\x1b]0;title\x07\r\n", r"\u001b]0;title\u0007\u000d"),
        (b"\x7f \xc2\x9b \xe2\x80\xa8", r"\u007f \u009b \u2028"),
        (b"\xf0\x9f\x98\x80 \xf3\xa0\x80\x81", "\U0001f600 \\udb40\\udc01"),
        (b"no end of line", "no end of line"),
    ],
)
def test_control_characters_are_escaped_as_in_json(line: bytes, shown: str) -> None:
    assert escaped(line) == shown
