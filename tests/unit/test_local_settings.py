"""Settings of the local processes; wrong ones get a helpful message."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from local import settings
from local.render import render_prometheus
from local.settings import StackError

# Variables for which compose.yaml has a default: ${NAME:-default}.
COMPOSE_DEFAULTS = set(re.findall(r"\$\{(\w+):-", (settings.ROOT / "compose.yaml").read_text()))


def test_defaults_are_the_documented_ports() -> None:
    ports = settings.ports({})
    assert ports["HTTP_PORT"] == 8080
    assert ports["PROMETHEUS_PORT"] == 9090
    assert ports["GRAFANA_PORT"] == 3000


def test_the_first_port_of_a_range_is_used() -> None:
    assert settings.ports({"FLASK_PORT": "8100-8109"})["FLASK_PORT"] == 8100


@pytest.mark.parametrize(
    "value", ["http", "0", "65536", "-1", "80.5", "8080/tcp", "8080-x", "8080-"]
)
def test_an_invalid_port_is_refused_by_name(value: str) -> None:
    with pytest.raises(StackError, match=f"HTTP_PORT={value}"):
        settings.ports({"HTTP_PORT": value})


def test_one_port_for_two_services_is_refused_naming_both() -> None:
    with pytest.raises(StackError, match=r"HTTP_PORT and FLASK_PORT|FLASK_PORT and HTTP_PORT"):
        settings.ports({"HTTP_PORT": "8000"})


def test_env_file_is_read_and_the_shell_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("# comment\n\nHTTP_PORT=81\nQUOTED='a b'\nFLASK_PORT=82\n")
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    monkeypatch.delenv("HTTP_PORT", raising=False)
    monkeypatch.setenv("FLASK_PORT", "83")
    values = settings.settings()
    assert (values["HTTP_PORT"], values["QUOTED"], values["FLASK_PORT"]) == ("81", "a b", "83")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=81", "81"),
        ("A =  81  ", "81"),
        ("A=81 # mine", "81"),
        ("A=x#y", "x#y"),
        ("A=two  words", "two  words"),
        ("A='x # y' # z", "x # y"),
        ('A="it\'s"', "it's"),
        ("A=http://h:1/?a=b&c=$d", "http://h:1/?a=b&c=$d"),
        ("export A=81", "81"),
        ("A=", ""),
        ("A= # nothing", ""),
        ("A=''", ""),
    ],
)
def test_a_line_of_env_is_read_as_compose_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, value: str
) -> None:
    (tmp_path / ".env").write_text(f"{line}\n")
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    monkeypatch.delenv("A", raising=False)
    assert settings.settings()["A"] == value


@pytest.mark.parametrize("name", sorted(COMPOSE_DEFAULTS))
def test_an_empty_variable_counts_as_unset_as_in_compose(name: str, tmp_path: Path) -> None:
    unset = settings.environment({}, tmp_path)
    assert settings.environment({name: ""}, tmp_path) == {name: ""} | unset


def test_a_bad_line_of_env_is_refused_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("A=1\nHTTP_PORT 81\n")
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    with pytest.raises(StackError, match=r"\.env, line 2"):
        settings.settings()


def test_an_env_file_that_is_not_utf_8_is_refused_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_bytes(b"A=1\nTEAM=M\xfcnchen\n")
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    with pytest.raises(StackError, match=r"\.env, line 2: .*UTF-8"):
        settings.settings()


def test_a_missing_env_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    with pytest.raises(StackError, match=r"\.env is missing.*git checkout"):
        settings.settings()


def test_a_grafana_home_without_grafana_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="GRAFANA_HOME"):
        settings.grafana_program({"GRAFANA_HOME": str(tmp_path)})


def test_rendering_prometheus_replaces_every_container_address() -> None:
    source = (settings.ROOT / "prometheus" / "prometheus.yml").read_text()
    env = {"PROMETHEUS_RULES_DIR": "/rules", "GRAFANA": ""}
    config = yaml.safe_load(render_prometheus(source, settings.container_addresses({}), env))
    groups = config["alerting"]["alertmanagers"] + config["scrape_configs"]
    targets = [
        target for job in groups for each in job["static_configs"] for target in each["targets"]
    ]
    assert all(target.startswith("127.0.0.1:") for target in targets)
    assert "127.0.0.1:9200" in targets
    assert "grafana" not in [job["job_name"] for job in config["scrape_configs"]]
    assert config["rule_files"] == ["/rules/*.yml"]


def test_the_apps_variables_replace_none_of_the_stacks(tmp_path: Path) -> None:
    (tmp_path / "app.env").write_text("SECRET_KEY=x\nHTTP_PORT=1\nNGINX_CACHE_TTL=2h\n")
    values = {"APP_ENV_FILE": str(tmp_path / "app.env")}
    found = settings.environment(values, tmp_path)
    names = ("SECRET_KEY", "HTTP_PORT", "NGINX_CACHE_TTL")
    assert [found[name] for name in names] == ["x", "8080", "30s"]


def test_an_apps_version_is_its_own_or_the_last_commit_of_its_folder(tmp_path: Path) -> None:
    assert settings.app_version({"APP_VERSION": "1.2"}) == "1.2"
    assert settings.app_version({"APP_DIR": str(tmp_path)}) == ""  # no git there
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "wsgi.py").touch()
    commit = ["commit", "--quiet", "--allow-empty", "--message=x"]
    for command in (["init", "--quiet"], ["add", "."], commit, commit):
        subprocess.run([*git, *command], check=True)
    history = subprocess.run([*git, "rev-list", "HEAD"], capture_output=True, text=True, check=True)
    _, first = history.stdout.split()
    version = settings.app_version({"APP_DIR": str(tmp_path / "app")})
    assert version == first[:12]


def test_containers_and_local_processes_trust_the_same_proxies(tmp_path: Path) -> None:
    for proxies in ("", "192.0.2.10 10.0.0.0/8"):
        values = {"NGINX_TRUSTED_PROXIES": proxies}
        script = '. nginx/15-trusted-proxies.envsh; printf %s "$NGINX_TRUST"'
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=settings.ROOT,
            env=os.environ | values,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == settings.environment(values, tmp_path)["NGINX_TRUST"]
