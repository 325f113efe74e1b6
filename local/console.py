"""What `./stack` prints while it works."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path

_START = time.monotonic()


def progress(message: str) -> None:
    """Print a step, after the seconds since the start."""
    print(f"[{time.monotonic() - _START:5.1f} s] {message}", flush=True)


def warn(message: str) -> None:
    """Print a warning."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def show(command: list[str | Path], folder: Path) -> int:
    """Run a command in a folder, print its output escaped, and return its exit status.

    For logs: clients choose parts of them, and must not send commands to the terminal.
    """
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            for line in process.stdout or ():
                sys.stdout.buffer.write(escaped(line).encode() + b"\n")
                sys.stdout.buffer.flush()
        except BaseException:  # Ctrl-C, or nobody reads this output
            process.terminate()
            raise
    return process.returncode


def escaped(line: bytes) -> str:
    r"""A line of a log without its end, safe to print: control characters become \u001b and so on.

    Bytes that are not UTF-8 become \ufffd. If the line is JSON, the result is valid JSON.
    """
    text = line.removesuffix(b"\n").decode(errors="replace")
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\t" else _escape(each) for each in text)


def _escape(character: str) -> str:
    units = struct.iter_unpack(">H", character.encode("utf-16-be"))
    return "".join(f"\\u{unit:04x}" for (unit,) in units)
