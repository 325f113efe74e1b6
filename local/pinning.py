"""Pins the packages of each requirements.in: `./stack lock`."""

from __future__ import annotations

import os
import subprocess

from local import packages
from local.console import progress
from local.settings import ROOT, VENV, StackError

# uv, from PyPI, pins for every platform and Python at once; pip-tools only for the present one.
TOOL = ROOT / "local" / "requirements-lock.txt"
FOLDERS = (ROOT / "flask", ROOT / "nginx" / "access_exporter")
OPTIONS = ("--generate-hashes", "--universal", "--python-version=3.11")
FILES = ("requirements.in", "--output-file=requirements.txt")


def lock(arguments: list[str]) -> int:
    """Write requirements.txt beside each requirements.in.

    Args:
        arguments: for uv, such as --upgrade.

    Raises:
        StackError: a package can't be found, or the network fails; the file is unchanged then.
    """
    packages.ensure_lock(progress)
    for folder in FOLDERS:
        command = [VENV / "bin" / "uv", "pip", "compile", *OPTIONS, "--quiet", *arguments, *FILES]
        # The command in the file's header: the same on every machine. Renovate runs it.
        named = {"UV_CUSTOM_COMPILE_COMMAND": " ".join(("uv pip compile", *OPTIONS, *FILES))}
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | named,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        name = (folder / "requirements.txt").relative_to(ROOT)
        if done.returncode:
            raise StackError(f"{name} could not be made:\n{done.stderr.strip()}")
        progress(f"{name} is up to date")
    return 0
