"""What `./stack` prints while it works."""

from __future__ import annotations

import sys
import time

_START = time.monotonic()


def progress(message: str) -> None:
    """Print a step, after the seconds since the start."""
    print(f"[{time.monotonic() - _START:5.1f} s] {message}", flush=True)


def warn(message: str) -> None:
    """Print a warning."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
