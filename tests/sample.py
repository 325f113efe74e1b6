"""Finds out whether flask/ contains the sample application or another one."""

from __future__ import annotations

from local.settings import ROOT

# Files in flask/ that do not belong to the application.
KEPT = ("telemetry", "gunicorn.conf.py", "gunicorn_settings.py", "gunicorn_workers.py")


def is_in_place() -> bool:
    """Whether flask/app.py is the sample application."""
    path = ROOT / "flask" / "app.py"
    return path.is_file() and path.read_text().startswith('"""The sample application.')


def foreign_files() -> list[str]:
    """Files of another application, which the project's linters do not check."""
    if is_in_place():
        return []
    return [f"flask/{path.name}" for path in (ROOT / "flask").iterdir() if path.name not in KEPT]
