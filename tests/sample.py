"""Distinguishes the project's files from those of another application in flask/."""

from __future__ import annotations

import subprocess
from pathlib import Path

from local.settings import ROOT

FLASK = ROOT / "flask"
# Files in flask/ that do not belong to the application.
KEPT = ("telemetry", "gunicorn.conf.py", "gunicorn_settings.py", "gunicorn_workers.py")
SAMPLE = ("app.py", "demo.py", "wsgi.py", "Dockerfile", "requirements.in", "requirements.txt")


def is_in_place() -> bool:
    """Whether flask/app.py is the sample application."""
    return _begins("app.py", '"""The sample application.')


def demo_is_in_place() -> bool:
    """Whether flask/demo.py is the sample application's."""
    return _begins("demo.py", '"""Routes that are slow or fail')


def foreign_files() -> list[str]:
    """Files and folders of another application, which the tests do not check."""
    kept = (*KEPT, *SAMPLE) if is_in_place() else KEPT
    return [f"flask/{path.name}" for path in FLASK.iterdir() if path.name not in kept]


def tracked(*patterns: str) -> list[str]:
    """The project's files that match, according to git, without those of another application."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    foreign = {ROOT / name for name in foreign_files()}
    return [
        name
        for name in listed.splitlines()
        if (ROOT / name).is_file() and not foreign & {ROOT / name, *(ROOT / name).parents}
    ]


def is_missing(path: Path) -> bool:
    """Whether a file that the project names does not exist; another application may lack some."""
    replaced = path.parent == FLASK and path.name in SAMPLE and not is_in_place()
    return not path.exists() and not replaced


def _begins(name: str, text: str) -> bool:
    path = FLASK / name
    return path.is_file() and path.read_text(errors="replace").startswith(text)
