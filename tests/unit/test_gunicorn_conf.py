"""gunicorn.conf.py: what the environment sets, and what stops the start."""

import fcntl
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.stacks import ROOT

CONF = ROOT / "flask" / "gunicorn.conf.py"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("GUNICORN_", "WSGI_APP", "PROMETHEUS_MULTIPROC_DIR")):
            monkeypatch.delenv(name)


def settings() -> dict[str, Any]:
    return runpy.run_path(str(CONF))


def test_defaults() -> None:
    found = settings()
    assert found["bind"] == "0.0.0.0:8000"
    assert (found["workers"], found["threads"]) == (3, 4)
    assert found["worker_class"] == "workers.FreeThreadWorker"
    assert (found["timeout"], found["graceful_timeout"], found["keepalive"]) == (60, 30, 75)
    assert (found["max_requests"], found["preload_app"]) == (0, False)


def test_empty_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_WORKERS", "")
    assert settings()["workers"] == 3


def test_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_WORKERS", "5")
    monkeypatch.setenv("GUNICORN_MAX_REQUESTS", "1000")
    monkeypatch.setenv("GUNICORN_PRELOAD_APP", "true")
    found = settings()
    assert (found["workers"], found["preload_app"]) == (5, True)
    assert (found["max_requests"], found["max_requests_jitter"]) == (1000, 100)


def test_sync_workers_have_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_WORKER_CLASS", "sync")
    monkeypatch.setenv("GUNICORN_THREADS", "8")
    assert "threads" not in settings()  # or gunicorn would take gthread


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("GUNICORN_WORKERS", "0", "a whole number from 1 to 64"),
        ("GUNICORN_WORKERS", "65", "a whole number from 1 to 64"),
        ("GUNICORN_THREADS", "many", "a whole number"),
        ("GUNICORN_TIMEOUT", "-1", "a whole number"),
        ("GUNICORN_TIMEOUT", "1.5", "a whole number"),
        ("GUNICORN_BACKLOG", "\N{SUPERSCRIPT TWO}", "a whole number"),
        ("GUNICORN_WORKER_CLASS", "gevent", "one of gthread, sync"),
        ("GUNICORN_PRELOAD_APP", "yes", "one of true, false"),
        ("GUNICORN_LOG_LEVEL", "loud", "one of debug, info, warning, error"),
    ],
)
def test_invalid_value_stops_the_start_and_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        settings()
    assert str(stopped.value).startswith(f"{name}={value!r}: must be {expected}")


def start(directory: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a gunicorn that is not to get as far as serving."""
    command = [sys.executable, "-m", "gunicorn", "--config", CONF]
    environ = {
        **os.environ,
        "GUNICORN_BIND": "127.0.0.1:0",
        "GUNICORN_METRICS_BIND": "127.0.0.1:0",
        "PROMETHEUS_MULTIPROC_DIR": str(directory),
        **environ,
    }
    return subprocess.run(
        command,
        cwd=CONF.parent,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_taken_metrics_port_stops_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        done = start(tmp_path, GUNICORN_METRICS_BIND=bind)
    assert done.returncode == 1
    assert f"GUNICORN_METRICS_BIND='{bind}': Address already in use" in done.stderr


@pytest.mark.parametrize("bind", ["9200", "127.0.0.1:many", "127.0.0.1:99999", "nowhere.invalid:1"])
def test_wrong_metrics_address_stops_the_start(tmp_path: Path, bind: str) -> None:
    done = start(tmp_path, GUNICORN_METRICS_BIND=bind)
    assert done.returncode == 1
    assert f"Error: GUNICORN_METRICS_BIND={bind!r}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_address_stops_the_start(tmp_path: Path) -> None:
    done = start(tmp_path, GUNICORN_BIND="127.0.0.1:many")
    assert done.returncode == 1
    assert "'many' is not a valid port number" in done.stderr


def test_directory_of_another_gunicorn_stops_the_start(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (tmp_path / "counter_1.db").touch()
    done = start(tmp_path)
    os.close(lock)
    assert done.returncode == 1
    assert f"{tmp_path}: another gunicorn counts there" in done.stderr
    assert (tmp_path / "counter_1.db").exists()


def test_unsupported_worker_class_stops_the_start(tmp_path: Path) -> None:
    done = start(tmp_path, GUNICORN_CMD_ARGS="--worker-class=asgi")
    assert done.returncode == 1
    assert "worker class asgi: the telemetry supports gthread and sync" in done.stderr
