"""Mistakes that `./stack up` reports before anything starts."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from local import checks, settings
from local.settings import DEFAULT_PORTS, StackError
from tests.stacks import free_port

GOOD = settings.settings()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PROMETHEUS_RETENTION_TIME", "banana", "15d"),
        ("PROMETHEUS_RETENTION_TIME", "15", "15d"),
        ("PROMETHEUS_RETENTION_SIZE", "lots", "2GB"),
        ("PROMETHEUS_RETENTION_SIZE", "2 GB", "2GB"),
        ("NGINX_WORKER_PROCESSES", "many", "auto"),
        ("NGINX_LOG_ADDRESSES", "no", "true or false"),
        ("ALERT_SMTP_REQUIRE_TLS", "maybe", "true or false"),
        ("PROMETHEUS_RULES_DIR", "no/such/folder", "no such folder"),
        ("ALERT_SECRETS_DIR", "/no/such/folder", "no such folder"),
        ("GUNICORN_WORKERS", "many", "whole number"),
        ("FLASK_APP_TIMEOUT", "soon", "whole number"),
        ("HTTP_PORT", "8080-x", "port number"),
        ("NGINX_CLIENT_MAX_BODY_SIZE", "20MB", "20m or 1g"),
        ("NGINX_CACHE_MAX_SIZE", "0", "20m or 1g"),
        ("NGINX_CACHE_TTL", "5 minutes", "30s, 5m or 1h"),
        ("APP_VERSION", 'a"b', "letters, digits"),
        ("APP_DIR", "no/such/folder", "no such folder"),
        ("APP_DIR", "docs", "has no wsgi.py"),
        ("APP_STATIC_DIR", "no/such/folder", "no such folder"),
    ],
)
@pytest.mark.parametrize("docker", [False, True])
def test_a_wrong_setting_is_refused_with_what_is_allowed(
    name: str, value: str, allowed: str, docker: bool
) -> None:
    with pytest.raises(StackError, match=rf"{name}=.*{re.escape(value)}.*{re.escape(allowed)}"):
        checks.check_settings(GOOD | {name: value}, docker=docker)


@pytest.mark.parametrize("value", ["proxy.example", "10.0.0.1/8", "192.0.2.1,192.0.2.2"])
def test_a_trusted_proxy_that_is_no_address_is_refused(value: str) -> None:
    wrong = {"NGINX_TRUSTED_PROXIES": f"192.0.2.10 {value}"}
    with pytest.raises(StackError, match=rf"NGINX_TRUSTED_PROXIES: .*{value}.*192\.0\.2\.10 10"):
        checks.check_settings(GOOD | wrong, docker=False)
    good = {"NGINX_TRUSTED_PROXIES": "192.0.2.10 10.0.0.0/8 2001:db8::/32"}
    checks.check_settings(GOOD | good, docker=True)


def test_an_image_is_built_only_from_an_app_in_the_repository(tmp_path: Path) -> None:
    (tmp_path / "wsgi.py").touch()
    values = GOOD | {"APP_DIR": str(tmp_path)}
    checks.check_settings(values, docker=False)
    with pytest.raises(StackError, match=rf"APP_DIR={tmp_path}: with Docker(.|\n)*no folder nginx"):
        checks.check_settings(values, docker=True)


def test_a_wrong_file_of_variables_is_refused_without_its_secrets(tmp_path: Path) -> None:
    path = tmp_path / "app.env"
    with pytest.raises(StackError, match=r"APP_ENV_FILE: .*app\.env can't be read: No such file"):
        checks.check_settings(GOOD | {"APP_ENV_FILE": str(path)}, docker=True)
    path.write_text("# mine\nSECRET_KEY: hidden\n")
    with pytest.raises(StackError, match=r"app\.env, line 2: expected NAME=VALUE$") as caught:
        checks.check_settings(GOOD | {"APP_ENV_FILE": str(path)}, docker=True)
    assert "hidden" not in str(caught.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    wrong = {"PROMETHEUS_RETENTION_SIZE": "x", "GUNICORN_THREADS": "x", "HTTP_PORT": "x"}
    with pytest.raises(StackError) as caught:
        checks.check_settings(GOOD | wrong, docker=False)
    assert all(name in str(caught.value) for name in wrong)


@pytest.mark.parametrize("value", ["15d", "1y", "1d12h", "30m", ""])
def test_durations_of_prometheus_are_accepted(value: str) -> None:
    values = GOOD | {"PROMETHEUS_RETENTION_TIME": value or "15d"}
    checks.check_settings(values, docker=False)


def test_a_setting_that_env_lacks_is_named() -> None:
    with pytest.raises(StackError, match=r"PROMETHEUS_RETENTION_TIME is not set.*git checkout"):
        checks.check_settings({}, docker=False)
    with pytest.raises(StackError, match="NGINX_IMAGE is not set"):
        checks.check_settings({}, docker=True)


def test_mail_without_a_sender_or_server_is_refused() -> None:
    with pytest.raises(StackError, match=r"ALERT_EMAIL_FROM is not set(.|\n)*ALERT_SMTP_HOST"):
        checks.check_settings(GOOD | {"ALERT_EMAIL_TO": "a@example.com"}, docker=False)


def test_every_port_in_use_is_named_inner_ports_too() -> None:
    values = GOOD | {name: str(free_port()) for name in DEFAULT_PORTS}
    checks.check_ports(values, docker=False)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as two:
        taken = {"HTTP_PORT": one, "NGINX_STATUS_PORT": two}
        values |= {name: str(server.getsockname()[1]) for name, server in taken.items()}
        with pytest.raises(StackError) as caught:
            checks.check_ports(values, docker=False)
        assert all(f"{name}={values[name]}: " in str(caught.value) for name in taken)
        with pytest.raises(StackError, match="HTTP_PORT=") as caught:
            checks.check_ports(values, docker=True)
        assert "NGINX_STATUS_PORT" not in str(caught.value)  # inside its container


def test_only_ports_that_will_be_used_must_be_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        values = {"PATH": "/nowhere"} | {name: str(free_port()) for name in DEFAULT_PORTS}
        values["GRAFANA_PORT"] = str(other.getsockname()[1])
        checks.check_ports(values, docker=False)
        with pytest.raises(StackError, match="PROMETHEUS_PORT="):
            checks.check_ports(
                values | {"PROMETHEUS_PORT": values["GRAFANA_PORT"]} | {"GRAFANA_PORT": "1"},
                docker=False,
            )


def test_every_port_can_be_set_in_env() -> None:
    text = (settings.ROOT / ".env").read_text()
    assert [name for name in DEFAULT_PORTS if f"#{name}=" not in text] == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match=rf"can't write to {tmp_path}/file/run"):
        checks.check_folder(tmp_path / "file" / "run")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.disk_problem(tmp_path) == ""
    monkeypatch.setattr(checks, "LEAST_FREE", 1 << 60)
    assert re.search(
        rf"disk is full: \d+ MB are free for {tmp_path}", checks.disk_problem(tmp_path)
    )
    with pytest.raises(StackError, match="disk is full"):
        checks.check_folder(tmp_path)
