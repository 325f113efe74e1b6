"""Keeps the metrics server running for as long as the arbiter runs."""

import contextlib
import errno
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from gunicorn.arbiter import Arbiter

BIND_SECONDS = 5  # gunicorn tries for its own address as long
# A server that ends sooner than this after its start is restarted with a pause.
SETTLED_SECONDS = 10
PAUSE_SECONDS = 1
HIGHEST_PORT = 65535


class Launcher:
    """The arbiter's handle on the metrics server."""

    def __init__(self, directory: Path, bind: str, ended: Callable[[], object]) -> None:
        """Listen at `bind`, HOST:PORT.

        The arbiter listens, so that a restarted server finds its socket still open, and a port that
        is in use stops gunicorn's start. `ended` is called whenever a server has ended.

        Raises:
            RuntimeError: the address is not valid or in use. gunicorn exits with the message.
        """
        self._socket = _listen(bind)
        self._socket.set_inheritable(True)
        self._directory = directory
        self._on_end = ended
        self._listeners: Sequence[socket.socket] = ()
        self._pid = 0
        self._spawning = False
        self._started = 0.0
        # Nothing is written to this pipe. When it closes, the server knows that the arbiter ended.
        self._alive_read, self._alive_write = os.pipe()

    def start(self, server: Arbiter) -> None:
        """Start the metrics server, and restart it whenever it ends."""
        self._listeners = server.LISTENERS
        self._spawn()
        arbiter_pid, gunicorns_handler = os.getpid(), signal.getsignal(signal.SIGCHLD)

        def child_ended(number: int, frame: FrameType | None) -> None:
            gunicorns_handler(number, frame)
            # The signal may interrupt _spawn before it knows the pid.
            if os.getpid() == arbiter_pid and not self._spawning and self._ended():
                self._on_end()
                self._spawn()

        signal.signal(signal.SIGCHLD, child_ended)

    def reload(self, server: Arbiter) -> None:
        """Restart the metrics server if gunicorn listens on other sockets after its reload."""
        if server.LISTENERS is not self._listeners:
            self._listeners = server.LISTENERS
            self._terminate()

    def stop(self) -> None:
        """End the metrics server for good."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._terminate()
        if self._pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)

    def forget(self) -> None:
        """Close, in a worker, the files that only the arbiter should hold."""
        os.close(self._alive_write)
        os.close(self._alive_read)
        self._socket.close()

    def _terminate(self) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)  # it has nothing to finish

    def _ended(self) -> bool:
        if not self._pid:
            return True
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] == self._pid
        except ChildProcessError:  # gunicorn waits for any child, and was first
            return True

    def _spawn(self) -> None:
        hurried = self._started and time.monotonic() - self._started < SETTLED_SECONDS
        self._started = time.monotonic()
        command = [
            sys.executable,
            *("-m", "gunicorn_flask_telemetry.server"),
            f"--directory={self._directory}",
            f"--metrics-fd={self._socket.fileno()}",
            f"--delay={PAUSE_SECONDS if hurried else 0}",
            *(str(listener.fileno()) for listener in self._listeners if _is_tcp(listener)),
        ]
        self._pid = 0
        self._spawning = True
        # A failure must not end gunicorn: the next child that ends makes it try again.
        with contextlib.suppress(OSError):
            self._pid = os.posix_spawn(
                sys.executable,
                command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, self._alive_read, 0)],
                # A Ctrl-C in the terminal must reach only gunicorn, which then ends the server.
                setsid=True,
            )
        self._spawning = False


def _listen(bind: str) -> socket.socket:
    try:
        host, port = _parse(bind)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        deadline = time.monotonic() + BIND_SECONDS
        while True:
            try:
                return socket.create_server((host, port), family=family)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RuntimeError(f"GUNICORN_METRICS_BIND={bind!r}: {reason}") from error


def _parse(bind: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([^]]+)]|([^:]+)):([0-9]{1,5})", bind)
    if not match or int(match[3]) > HIGHEST_PORT:
        raise ValueError("must be HOST:PORT")
    return match[1] or match[2], int(match[3])


def _is_tcp(listener: socket.socket) -> bool:
    return listener.FAMILY != socket.AF_UNIX
