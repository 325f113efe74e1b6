"""The stack file for Docker Swarm: what Swarm would refuse, ignore or make public is gone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from local import swarm
from local.settings import ROOT, StackError
from tests.stacks import engine_missing, run

IMAGES = dict.fromkeys(("nginx-proxy", "flask-app", "nginx-access-exporter"), "registry/x@sha256:1")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The project as `./stack deploy` reads it, with every way to serve HTTPS and a login."""
    if engine_missing():
        pytest.skip(engine_missing())
    files = ("compose.yaml", "compose.tls.yaml", "compose.login.yaml", "compose.swarm.yaml")
    env = os.environ | {"COMPOSE_FILE": os.pathsep.join(files), "COMPOSE_PROJECT_NAME": "shop"}
    return json.loads(run(["docker", "compose", "config", "--format", "json"], env))


def stack_file(project: dict[str, Any], **changed: dict[str, Any]) -> dict[str, Any]:
    """The stack file of a project in which some services are changed."""
    services = {
        name: service | changed.get(name.replace("-", "_"), {})
        for name, service in project["services"].items()
    }
    return swarm.stack_file(
        project | {"services": services}, IMAGES, {"GRAFANA_ADMIN_PASSWORD": "x"}
    )


def bind(source: Path, target: str) -> dict[str, Any]:
    return {"type": "bind", "source": str(source), "target": target, "read_only": True}


def test_docker_accepts_the_stack_file(project: dict[str, Any], tmp_path: Path) -> None:
    path = swarm.write(stack_file(project), tmp_path)
    done = subprocess.run(
        ["docker", "stack", "config", "--compose-file", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Ignoring" not in done.stderr


def test_only_nginx_is_published_and_on_the_nodes_themselves(project: dict[str, Any]) -> None:
    services = stack_file(project)["services"]
    published = {name: each["ports"] for name, each in services.items() if each["ports"]}
    assert published == {
        "nginx-proxy": [
            {"target": port, "published": port, "protocol": "tcp", "mode": "host"}
            for port in (80, 443)
        ]
    }


def test_every_name_stands_for_its_tasks_and_has_limits(project: dict[str, Any]) -> None:
    for name, service in stack_file(project)["services"].items():
        assert service["deploy"]["endpoint_mode"] == "dnsrr", name
        assert set(service["deploy"]["resources"]["limits"]) == {"memory", "pids"}, name
        assert not set(service) & set(swarm.DROPPED) - {"ports", "volumes"}, name


def test_only_the_app_starts_its_successor_first(project: dict[str, Any]) -> None:
    for name, service in stack_file(project)["services"].items():
        update = service["deploy"]["update_config"]
        assert update["order"] == ("start-first" if name == "flask-app" else "stop-first")
        assert update["failure_action"] == "rollback"
        assert update["parallelism"] == 1


def test_the_nginx_unit_runs_on_labelled_nodes_and_data_has_one_place(
    project: dict[str, Any],
) -> None:
    for name, service in stack_file(project)["services"].items():
        label = "nginx" if name.startswith("nginx") else "data"
        place = service["deploy"].get("placement")
        assert name == "flask-app" or place == {"constraints": [f"node.labels.{label} == true"]}
        assert (service["deploy"].get("mode") == "global") == name.startswith("nginx")


def test_mounted_files_become_configs_under_their_contents_hash(
    project: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a b.conf").write_text("one")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "empty").touch()
    mounted = {"volumes": [bind(tmp_path, "/etc/app"), bind(Path(os.devnull), "/etc/none")]}
    first = stack_file(project, flask_app=mounted)
    (config,) = first["services"]["flask-app"]["configs"]
    assert config["target"] == "/etc/app/inner/a b.conf"
    assert first["configs"][config["source"]] == {
        "name": f"shop-{config['source']}",
        "file": str(tmp_path / "inner" / "a b.conf"),
    }
    assert config["source"].startswith("a-b.conf-")
    (tmp_path / "inner" / "a b.conf").write_text("two")
    (changed,) = stack_file(project, flask_app=mounted)["services"]["flask-app"]["configs"]
    assert changed["source"] != config["source"]


def test_of_the_documents_only_pages_reach_prometheus(project: dict[str, Any]) -> None:
    configs = stack_file(project)["services"]["prometheus"]["configs"]
    targets = {each["target"] for each in configs if "/docs/" in each["target"]}
    assert targets == {f"/etc/prometheus/docs/{name}.html" for name in ("graphs", "runbooks")}


def test_secrets_do_not_become_configs(project: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "alert_slack_url").write_text("https://example.com")
    (tmp_path / "key.pem").write_text("key")
    content = stack_file(
        project,
        alertmanager={"volumes": [bind(tmp_path, "/run/secrets")]},
        nginx_proxy={"volumes": [bind(tmp_path, "/etc/nginx/tls")]},
    )
    for name in ("alertmanager", "nginx-proxy"):
        assert "configs" not in content["services"][name]
    targets = {each["target"] for each in content["services"]["alertmanager"]["secrets"]}
    assert targets == {"/run/secrets/alert_slack_url", "/run/secrets/key.pem"}
    assert not [name for name in content["configs"] if name.startswith(("key", "alert_slack"))]


def test_a_password_in_a_variable_becomes_a_secret_of_a_private_file(
    project: dict[str, Any], tmp_path: Path
) -> None:
    content = stack_file(project)
    name = content["secrets"]["grafana_admin_password"]["name"]
    path = swarm.write(content, tmp_path)
    secret = json.loads(path.read_text())["secrets"]["grafana_admin_password"]
    assert Path(secret["file"]).read_text() == "x\n"
    assert secret["name"] == name
    other = swarm.stack_file(project, IMAGES, {"GRAFANA_ADMIN_PASSWORD": "y"})
    assert other["secrets"]["grafana_admin_password"]["name"] != name
    assert '"x' not in json.dumps(content["services"])


def test_a_file_that_swarm_cannot_take_is_named(project: dict[str, Any], tmp_path: Path) -> None:
    large = tmp_path / "film.mp4"
    large.write_bytes(b"x" * (swarm.LARGEST + 1))
    with pytest.raises(StackError, match=r"film\.mp4.*500000 bytes"):
        stack_file(project, nginx_proxy={"volumes": [bind(tmp_path, "/srv/app/static")]})


class FakeManager(swarm.Manager):
    """A manager that says what a test wants it to."""

    def __init__(self, state: dict[str, Any], *labels: dict[str, str]) -> None:
        super().__init__("")
        self.state, self.labels = state, labels

    def output(self, *command: str) -> str:
        return json.dumps(self.state) if command[0] == "info" else "a b"

    def inspect(self, what: str, ids: list[str]) -> list[dict[str, Any]]:
        del what, ids
        return [{"Spec": {"Labels": labels}} for labels in self.labels]


@pytest.mark.parametrize(
    ("leads", "labels", "message"),
    [
        (False, [], "docker swarm init"),
        (True, [{"data": "true"}], "label-add nginx=true"),
        (True, [{"nginx": "true"}, {}], "^0 nodes have the label data=true"),
        (True, [{"nginx": "true", "data": "true"}, {"data": "true"}], "^2 nodes have the label"),
    ],
)
def test_a_swarm_that_cannot_run_the_stack_is_refused(
    leads: bool,
    labels: list[dict[str, str]],
    message: str,
) -> None:
    with pytest.raises(StackError, match=message):
        FakeManager({"ControlAvailable": leads}, *labels).check()


def test_the_registry_has_to_be_named() -> None:
    done = subprocess.run(
        [ROOT / "stack", "deploy"],
        env={key: value for key, value in os.environ.items() if key != "SWARM_REGISTRY"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "SWARM_REGISTRY is not set" in done.stderr


@pytest.mark.parametrize(
    ("count", "complete"), [("2/2", True), ("0/2", False), ("3/2", False), ("0/0", False)]
)
def test_a_service_is_complete_if_all_its_tasks_run(count: str, complete: bool) -> None:
    assert swarm.is_complete(count) == complete


class ScriptedManager(swarm.Manager):
    """A manager of one service that goes through states, one with each look at it."""

    def __init__(self, *states: tuple[str, str]) -> None:
        super().__init__("")
        self.states = list(states)

    def services(self, stack: str) -> dict[str, swarm.Service]:
        del stack
        if len(self.states) > 1:
            self.states.pop(0)
        return {"app": swarm.Service(self.states[0][1], set())}

    def replicas(self, stack: str) -> dict[str, str]:
        del stack
        return {"app": self.states[0][0]}

    def problems(self, service: str) -> list[str]:
        return [f"{service}: unhealthy container"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter times to wait."""
    monkeypatch.setattr(swarm, "INTERVAL", 0.01)
    monkeypatch.setattr(swarm, "SETTLED", 0.1)


@pytest.mark.usefixtures("quick")
def test_a_rolled_back_update_is_reported_when_it_has_ended() -> None:
    # Each for longer than what runs has to run on.
    states = [("2/2", "updating")] * 30 + [("2/2", "rollback_started")] * 30
    manager = ScriptedManager(*states, ("2/2", "rollback_completed"))
    assert swarm.wait(manager, "shop") == ["app"]
    assert manager.states == [("2/2", "rollback_completed")]


@pytest.mark.usefixtures("quick")
def test_a_rolled_back_update_is_reported_though_swarm_then_calls_it_completed() -> None:
    states = [("2/2", "rollback_started"), ("2/2", "rollback_completed")]
    manager = ScriptedManager(*states, ("2/2", "completed"))
    assert swarm.wait(manager, "shop") == ["app"]
    assert manager.states == [("2/2", "completed")]


@pytest.mark.usefixtures("quick")
def test_a_task_that_restarts_again_and_again_is_not_complete() -> None:
    flapping = [("1/1", ""), ("0/0", ""), ("0/1", "")] * 20
    assert swarm.wait(manager := ScriptedManager(*flapping, ("1/1", "completed")), "shop") == []
    assert len(manager.states) == 1


@pytest.mark.usefixtures("quick")
def test_a_deployment_that_gets_nowhere_says_what_swarm_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(swarm, "STUCK_AFTER", 0.1)
    with pytest.raises(StackError, match="app: unhealthy container"):
        swarm.wait(ScriptedManager(("0/2", "")), "shop")
