"""Makes the machine busy: the outcome of a test must not depend on the machine's speed."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

LOOPS = 6
LONGEST = 180  # seconds, in case the test is killed before it ends the loops


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    """Run endless loops beside the test."""
    command = ["timeout", str(LONGEST), "sh", "-c", "while :; do :; done"]
    running = [subprocess.Popen(command) for _ in range(LOOPS)]
    try:
        yield
    finally:
        for loop in running:
            loop.terminate()
        for loop in running:
            loop.wait()
