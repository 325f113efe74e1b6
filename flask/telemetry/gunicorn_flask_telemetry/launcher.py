"""Keeps the metrics server running for as long as the arbiter does."""

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

FD_VARIABLE = "GUNICORN_METRICS_FD"
BIND_SECONDS = 5  # as long as gunicorn tries for its own address
# A server that ended sooner than this after its start is started with a pause.
SETTLED_SECONDS = 10
PAUSE_SECONDS = 1
HIGHEST_PORT = 65535


class Launcher:
    """The arbiter's handle on the metrics server."""

    def __init__(self, directory: Path, bind: str, ended: Callable[[], object]) -> None:
        """Listen at `bind`, HOST:PORT, or take over the socket of the arbiter that this replaces.

        Listening here lets a restarted server find its socket still there, and a taken port stop
        gunicorn's start. `ended` is called whenever a server has ended.

        Raises:
            RuntimeError: there is no listening at that address. Gunicorn exits with its message.
        """
        inherited = os.environ.pop(FD_VARIABLE, None)
        self._socket = socket.socket(fileno=int(inherited)) if inherited else _listen(bind)
        self._socket.set_inheritable(True)
        self._directory = directory
        self._on_end = ended
        self._listeners: Sequence[socket.socket] = ()
        self._pid = 0
        self._spawning = False
        self._started = 0.0
        # Never written to: its closing tells the server that the arbiter is gone.
        self._alive_read, self._alive_write = os.pipe()

    def start(self, server: Arbiter) -> None:
        """Start the metrics server, and start it again whenever it dies."""
        self._listeners = server.LISTENERS
        self._spawn()
        arbiter_pid, gunicorns_handler = os.getpid(), signal.getsignal(signal.SIGCHLD)

        def child_ended(number: int, frame: FrameType | None) -> None:
            gunicorns_handler(number, frame)
            # It may interrupt _spawn, which does not know the pid yet.
            if os.getpid() == arbiter_pid and not self._spawning and self._ended():
                self._on_end()
                self._spawn()

        signal.signal(signal.SIGCHLD, child_ended)

    def reload(self, server: Arbiter) -> None:
        """Restart the metrics server where gunicorn listens on other sockets now."""
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
        """Close, in a worker, what only the arbiter should hold."""
        os.close(self._alive_write)
        os.close(self._alive_read)
        self._socket.close()

    def hand_over(self, environ: dict[str, str]) -> None:
        """Leave the socket to the arbiter about to be started in `environ`."""
        environ[FD_VARIABLE] = str(self._socket.fileno())

    def _terminate(self) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)  # it has nothing to finish

    def _ended(self) -> bool:
        if not self._pid:
            return True
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] == self._pid
        except ChildProcessError:  # gunicorn, which waits for any child, was quicker
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
        # Gunicorn must not end because this could not start: the next child to end tries again.
        with contextlib.suppress(OSError):
            self._pid = os.posix_spawn(
                sys.executable,
                command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, self._alive_read, 0)],
                # A Ctrl-C in the terminal is for gunicorn, which ends the server in its turn.
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
