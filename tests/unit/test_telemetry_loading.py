"""An application that does not load: gunicorn says why, once and readably, and ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gunicorn_flask_telemetry.loading import FIRST_LINE, LAST_LINE
from tests.stacks import ROOT


def start(directory: Path, application: str, **environ: str) -> tuple[int, str]:
    """Run gunicorn with this application; return its exit status and what it printed."""
    (directory / "broken.py").write_text(application)
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py"],
        cwd=ROOT / "flask",
        env={
            **os.environ,
            "PYTHONPATH": str(directory),
            "WSGI_APP": "broken:app",
            "GUNICORN_BIND": "127.0.0.1:0",
            "GUNICORN_METRICS_BIND": "127.0.0.1:0",
            "GUNICORN_GRACEFUL_TIMEOUT": "5",
            "PROMETHEUS_MULTIPROC_DIR": str(directory / "counts"),
            **environ,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("preload", ["false", "true"])
def test_exception_is_printed_once_and_gunicorn_ends(tmp_path: Path, preload: str) -> None:
    application = "def connect():\n    import no_such_module\n\nconnect()\n"
    status, printed = start(tmp_path, application, GUNICORN_PRELOAD_APP=preload)
    assert status == 4
    file = tmp_path / "broken.py"
    expected = f"""{FIRST_LINE}
Traceback (most recent call last):
  File "{file}", line 4, in <module>
    connect()
  File "{file}", line 2, in connect
    import no_such_module
ModuleNotFoundError: No module named 'no_such_module'
{LAST_LINE}
"""
    assert expected in printed
    assert printed.count("no_such_module") == expected.count("no_such_module")


@pytest.mark.parametrize(
    ("application", "reason"),
    [
        ("import sys\nsys.exit('no database')\n", "SystemExit: no database"),
        ("application = None\n", "AppImportError: Failed to find attribute 'app' in 'broken'."),
        ("app = = 1\n", "SyntaxError: invalid syntax"),
    ],
)
def test_every_kind_of_failure_ends_gunicorn(tmp_path: Path, application: str, reason: str) -> None:
    status, printed = start(tmp_path, application)
    assert status == 4
    report = printed[printed.index(FIRST_LINE) : printed.index(LAST_LINE)]
    assert report.splitlines()[-1].endswith(reason)
    assert "getattr" not in report  # none of gunicorn's own frames
