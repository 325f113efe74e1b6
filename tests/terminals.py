"""A program in a terminal of its own: what it shows, and keys for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pyte


class Terminal:
    """A terminal with a program in it.

    Args:
        command: the program and its arguments.
        env: its environment.
        columns: width in characters.
        lines: height in lines.
    """

    def __init__(
        self, command: list[str | Path], env: dict[str, str], columns: int, lines: int
    ) -> None:
        self.output = b""  # everything the program wrote
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], list(map(str, command)), env)  # noqa: S606
        self.resize(columns, lines)

    @property
    def text(self) -> str:
        """What the screen shows now."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size, as its window's frame does."""
        self._screen.resize(lines, columns)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._fd, keys.encode())

    def wait_for(self, text: str, timeout: float = 30, *, gone: bool = False) -> str:
        """The screen once it shows the text, or once it does not."""
        deadline = time.monotonic() + timeout
        while (text in self.text) == gone:
            assert time.monotonic() < deadline, f"{text!r} (gone: {gone}) on:\n{self.text}"
            self._read(0.1)
        return self.text

    def wait(self, timeout: float = 30) -> int:
        """The exit status, once the program has ended."""
        deadline = time.monotonic() + timeout
        while True:
            self._read(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                self._read(0)
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, f"still running:\n{self.text}"

    def close(self) -> None:
        """End the program if it still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    def _read(self, seconds: float) -> None:
        while select.select([self._fd], [], [], seconds)[0]:
            data = b""
            with contextlib.suppress(OSError):  # the program has ended
                data = os.read(self._fd, 1 << 16)
            if not data:
                return
            self.output += data
            self._stream.feed(data)
            seconds = 0


@contextlib.contextmanager
def terminal(
    command: list[str | Path], env: dict[str, str], columns: int = 100, lines: int = 30
) -> Iterator[Terminal]:
    """A terminal for as long as the context lasts."""
    running = Terminal(command, {"TERM": "xterm-256color"} | env, columns, lines)
    try:
        yield running
    finally:
        running.close()
