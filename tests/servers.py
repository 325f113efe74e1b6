"""Servers that a test or a benchmark runs itself, for as long as a context lasts."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import requests

from local.settings import BIN
from tests.stacks import wait_until


def nginx_command(env: Mapping[str, str], folder: str) -> list[str | Path]:
    """An nginx in the foreground, with the configuration that local/render.py wrote.

    Args:
        env: of local/settings.py.
        folder: of the configuration.
    """
    options = f"daemon off; {env['NGINX_USER_DIRECTIVE']}"
    config = f"{folder}/nginx.conf"
    return [BIN / "nginx", "-e", "stderr", "-p", folder, "-c", config, "-g", options]


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    url: str,
    seconds: float,
    *,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
) -> Iterator[int]:
    """Run a server, and yield its process id as soon as its URL answers with success.

    Args:
        command: the program and its arguments.
        url: what is asked.
        seconds: within which it must answer.
        env: its environment.
        output: where it writes; the test's own output by default.
    """
    with subprocess.Popen(command, env=env, stdout=output, stderr=output) as process:
        try:
            wait_until(lambda: requests.get(url, timeout=5).ok, seconds, f"{url} to answer")
            yield process.pid
        finally:
            process.terminate()
