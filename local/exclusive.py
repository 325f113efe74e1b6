"""Lets one `./stack` at a time change something."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock that this file stands for; the kernel frees it if the process is killed.

    Args:
        path: the file, which is created. It names its holder's process id.
        waiting: is called once if another process holds the lock, with that process's id.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Programs started meanwhile do not inherit the lock: Python closes its files for them.
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            waiting(file.read().strip() or "unknown")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
