"""Writes the revision that the wheel is built from into the wheel."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RevisionHook(BuildHookInterface):
    """Adds `_revision.py` to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Write the file to a temporary folder, so that the source tree does not change."""
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name, "_revision.py")
        file.write_text(f"REVISION = {revision(self.root)!r}\n")
        build_data["force_include"][str(file)] = "nginx_access_exporter/_revision.py"

    def finalize(self, *_: object) -> None:
        """Remove the temporary folder."""
        self._folder.cleanup()


def revision(folder: str) -> str:
    """Return STACK_REVISION (which image builds set), or git's revision, or `unknown`."""
    if given := os.environ.get("STACK_REVISION"):
        return given
    command = ["git", "-C", folder, "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
