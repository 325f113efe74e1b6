"""Finds and ends processes of the stack whose supervisord, or whose own main process, was killed.

supervisord leads a session, and the processes that it starts stay in it. A session belongs to this
stack if one of its processes has the run directory in its environment or command line: the kernel
may have given the number in an old pid file to another process.

Each program that supervisord starts leads a process group. If gunicorn's arbiter or nginx's master
is killed, its workers keep the port, so supervisord starts these programs with

    python orphans.py PROGRAM ARGUMENTS...      ends workers without a leader, then runs the program
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Longer than gunicorn and nginx take to end their requests, unless FLASK_APP_TIMEOUT was raised.
SECONDS_TO_END = 70


class _Stat(NamedTuple):
    state: str
    group: int
    session: int


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    stat = _stat(pid)
    return stat is not None and stat.state not in "ZX"


def session_of(run: Path) -> int:
    """The session of the stack that has this run directory; 0 if none of its processes runs."""
    try:
        number = int((run / "supervisord.pid").read_text())
    except (FileNotFoundError, ValueError):
        return 0
    if number == os.getsid(0):
        return 0  # an old number that is now this terminal's session
    return number if any(_knows(pid, run) for pid in session(number)) else 0


def session(leader: int) -> list[int]:
    """The running processes of a session."""
    return _running(lambda stat: stat.session == leader)


def group(leader: int) -> list[int]:
    """The running processes of a process group."""
    return _running(lambda stat: stat.group == leader)


def leaderless(pids: list[int]) -> list[int]:
    """Those of these processes whose process group has lost its leader."""
    return [pid for pid in pids if (stat := _stat(pid)) and not alive(stat.group)]


def end(find: Callable[[], list[int]], *, now: bool = False) -> None:
    """End processes and wait for it; kill those that take too long, or all if `now`.

    Args:
        find: returns those that still run. It is called repeatedly, because a process may start
            another one before it ends.
        now: kill them at once.
    """
    gently = () if now else ((signal.SIGTERM, SECONDS_TO_END),)
    for number, seconds in (*gently, (signal.SIGKILL, 5)):
        signalled: set[int] = set()
        deadline = time.monotonic() + seconds
        while (pids := find()) and time.monotonic() < deadline:
            for pid in sorted(set(pids) - signalled):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            signalled.update(pids)
            time.sleep(0.05)


def _running(belongs: Callable[[_Stat], bool]) -> list[int]:
    pids = sorted(int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if (stat := _stat(pid)) and belongs(stat) and alive(pid)]


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # After the name in brackets: state, parent, group, session. See proc_pid_stat(5).
    state, _parent, group, session, *_ = text.rpartition(")")[2].split()
    return _Stat(state, int(group), int(session))


def _knows(pid: int, run: Path) -> bool:
    # nginx overwrites its environment with its title, but its command line has the directory.
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # another user's, or gone
        return False
    return os.fsencode(f"STACK_RUN_DIR={run}") in environment or os.fsencode(f"{run}/") in command


if __name__ == "__main__":
    # At once: nobody serves new requests until these have ended.
    end(lambda: leaderless(session(os.getsid(0))), now=True)
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606
