"""gunicorn.conf.py: what the environment sets, and what stops the start."""

import configparser
import fcntl
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import gunicorn_settings
import pytest
import yaml
from gunicorn.config import Config

from gunicorn_flask_telemetry import launcher, state
from local.settings import environment
from tests.stacks import ROOT

CONF = ROOT / "flask" / "gunicorn.conf.py"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("GUNICORN_", "FLASK_APP_", "WSGI_APP", "PROMETHEUS_MULTIPROC_DIR")):
            monkeypatch.delenv(name)


def settings() -> dict[str, Any]:
    return runpy.run_path(str(CONF))


def test_defaults() -> None:
    found = settings()
    assert found["bind"] == "0.0.0.0:8000"
    assert (found["workers"], found["threads"]) == (3, 4)
    assert found["worker_class"] == "gunicorn_workers.FreeThreadWorker"
    assert (found["timeout"], found["graceful_timeout"], found["keepalive"]) == (60, 30, 75)
    assert (found["max_requests"], found["preload_app"]) == (0, False)
    # The telemetry reads these.
    assert found["raw_env"] == ["GUNICORN_QUEUE_TIMEOUT=5", "GUNICORN_PROXY_TIMEOUT=65"]


def test_empty_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_WORKERS", "")
    assert settings()["workers"] == 3


def test_variables_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_WORKERS", "5")
    monkeypatch.setenv("GUNICORN_MAX_REQUESTS", "1000")
    monkeypatch.setenv("GUNICORN_PRELOAD_APP", "true")
    found = settings()
    assert (found["workers"], found["preload_app"]) == (5, True)
    assert (found["max_requests"], found["max_requests_jitter"]) == (1000, 100)


def test_sync_workers_have_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_WORKER_CLASS", "sync")
    monkeypatch.setenv("GUNICORN_THREADS", "8")
    assert "threads" not in settings()  # with threads, gunicorn would use gthread


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


def test_every_mistake_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_WORKERS", "none")
    monkeypatch.setenv("GUNICORN_BACKLOG", "-1")
    with pytest.raises(SystemExit) as stopped:
        settings()
    assert [line.partition("=")[0] for line in str(stopped.value).splitlines()] == [
        "GUNICORN_WORKERS",
        "GUNICORN_BACKLOG",
    ]


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        # nginx gives up after FLASK_APP_TIMEOUT, and Compose and supervisor kill gunicorn then.
        ("GUNICORN_TIMEOUT", "61", "from 1 to 60 (FLASK_APP_TIMEOUT=65 less 5)"),
        ("GUNICORN_TIMEOUT", "0", "from 1 to 60"),  # in gunicorn, 0 means no timeout
        ("GUNICORN_GRACEFUL_TIMEOUT", "61", "from 1 to 60 (FLASK_APP_TIMEOUT=65 less 5)"),
        ("GUNICORN_KEEPALIVE", "1", "from 2 to 2147483647, or 0 for no keep-alive"),
        ("GUNICORN_QUEUE_TIMEOUT", "61", "from 0 to 60 (FLASK_APP_TIMEOUT=65 less 5)"),
        ("FLASK_APP_TIMEOUT", "9", "from 10 to 2147483647"),
    ],
)
def test_timeout_that_contradicts_nginx_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, limit: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        settings()
    assert str(stopped.value).startswith(f"{name}={value!r}: must be a whole number {limit}")


@pytest.mark.parametrize(
    ("limit", "worker_class", "timeout", "graceful_timeout"),
    [
        ("65", "gthread", 60, 30),
        ("300", "gthread", 60, 30),
        ("300", "sync", 295, 30),
        ("20", "gthread", 15, 15),
    ],
)
def test_timeouts_follow_nginxs(
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    worker_class: str,
    timeout: int,
    graceful_timeout: int,
) -> None:
    monkeypatch.setenv("FLASK_APP_TIMEOUT", limit)
    monkeypatch.setenv("GUNICORN_WORKER_CLASS", worker_class)
    found = settings()
    assert (found["timeout"], found["graceful_timeout"]) == (timeout, graceful_timeout)


def test_longer_timeouts_are_allowed_once_nginx_waits_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASK_APP_TIMEOUT", "300")
    monkeypatch.setenv("GUNICORN_TIMEOUT", "295")
    monkeypatch.setenv("GUNICORN_GRACEFUL_TIMEOUT", "295")
    monkeypatch.setenv("GUNICORN_KEEPALIVE", "0")
    found = settings()
    assert (found["timeout"], found["graceful_timeout"], found["keepalive"]) == (295, 295, 0)


def test_nginx_compose_and_supervisor_have_the_same_limit() -> None:
    """All three use FLASK_APP_TIMEOUT."""
    template = (ROOT / "nginx/templates/flask-app.conf.template").read_text()
    assert "proxy_read_timeout ${FLASK_APP_TIMEOUT}s;" in template
    assert f"keepalive_timeout {gunicorn_settings.NGINX_KEEPALIVE}s;" in template
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    supervisor = configparser.RawConfigParser()
    supervisor.read(ROOT / "local/supervisord.conf")
    for service in ("nginx-proxy", "flask-app"):
        assert services[service]["stop_grace_period"] == "${FLASK_APP_TIMEOUT:-65}s"
        assert supervisor[f"program:{service}"]["stopwaitsecs"] == "%(ENV_FLASK_APP_TIMEOUT)s"
    assert environment({}, Path("/run"))["FLASK_APP_TIMEOUT"] == "65"


def test_metrics_port_in_use_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launcher, "BIND_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        expected = f"GUNICORN_METRICS_BIND='{bind}': Address already in use"
        with pytest.raises(RuntimeError, match=expected):
            launcher.Launcher(tmp_path, bind, ended=lambda: None)


@pytest.mark.parametrize("bind", ["9200", "127.0.0.1:many", "127.0.0.1:99999", "nowhere.invalid:1"])
def test_wrong_metrics_address_is_named(tmp_path: Path, bind: str) -> None:
    with pytest.raises(RuntimeError, match=f"GUNICORN_METRICS_BIND='{bind}': "):
        launcher.Launcher(tmp_path, bind, ended=lambda: None)


def test_directory_of_another_gunicorn_is_refused_and_not_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(state, "LOCK_SECONDS", 0)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (tmp_path / "counter_1.db").touch()
    with pytest.raises(RuntimeError, match=f"{tmp_path}: another gunicorn uses this directory"):
        state.State(Config())
    os.close(lock)
    assert (tmp_path / "counter_1.db").exists()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("GUNICORN_METRICS_BIND", "9200", "Error: GUNICORN_METRICS_BIND='9200': must be HOST:PORT"),
        ("GUNICORN_BIND", "127.0.0.1:many", "'many' is not a valid port number"),
        (
            "GUNICORN_CMD_ARGS",
            "--worker-class=asgi",
            "worker class asgi: the telemetry supports gthread and sync",
        ),
    ],
)
def test_gunicorn_that_cannot_start_says_why(
    tmp_path: Path, variable: str, value: str, message: str
) -> None:
    environ = {
        **os.environ,
        "GUNICORN_BIND": "127.0.0.1:0",
        "GUNICORN_METRICS_BIND": "127.0.0.1:0",
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        variable: value,
    }
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--config", CONF],
        cwd=CONF.parent,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
