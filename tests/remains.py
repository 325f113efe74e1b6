"""Finds processes and containers that this run of the tests started and did not end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Every process that the tests start inherits it, and stacks have it in the names of their folders
# and containers. The processes of pytest-xdist inherit it too.
RUN = os.environ.setdefault("STACK_TEST_RUN", os.urandom(3).hex())


def processes(folder: Path) -> list[str]:
    """The running processes, as `pid command`.

    Args:
        folder: of pytest's temporary files.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # another user's, or gone
            continue
        # nginx overwrites its environment with its title, which contains its folder.
        ours = f"stack-{RUN}-" in command or f"{folder}/" in command
        if command and (ours or f"STACK_TEST_RUN={RUN}".encode() in environment):
            found.append(f"{path.name} {command.strip()}")
    return found


def containers() -> list[str]:
    """The names of the containers, running or not; none without an engine."""
    names = ["--format", "{{.Names}}", "--filter", f"name=stack-test-{RUN}-"]
    try:
        done = subprocess.run(
            ["docker", "ps", "--all", *names], capture_output=True, text=True, check=False
        )
    except OSError:
        return []
    return done.stdout.split()
