"""Tells whether flask/ has the sample application, or an app that somebody put in its place."""

from __future__ import annotations

from local.settings import ROOT

# What flask/ has besides an application.
KEPT = ("telemetry", "gunicorn.conf.py", "gunicorn_settings.py", "workers.py")


def is_in_place() -> bool:
    """Whether flask/app.py is the sample application."""
    path = ROOT / "flask" / "app.py"
    return path.is_file() and path.read_text().startswith('"""The sample application.')


def foreign_files() -> list[str]:
    """What belongs to somebody's app; the project's linters leave it alone."""
    if is_in_place():
        return []
    return [f"flask/{path.name}" for path in (ROOT / "flask").iterdir() if path.name not in KEPT]
