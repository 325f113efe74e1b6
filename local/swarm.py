"""Runs the stack in a Docker Swarm: makes a stack file of what Compose reads, and deploys it.

`docker stack deploy` ignores or refuses much of Compose's format: see docs/swarm.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from local import compose
from local.console import progress
from local.settings import ROOT, StackError

OVERLAY = "compose.swarm.yaml"
# Swarm ignores these, or knows them by another name (in `deploy`).
DROPPED = (
    *("build", "depends_on", "mem_limit", "pids_limit", "ports", "profiles", "restart"),
    *("security_opt", "tmpfs", "volumes"),
)
# What is mounted there holds secrets: it becomes Secrets, all else Configs.
SECRET_FOLDERS = ("/run/secrets", "/etc/nginx/tls", "/etc/nginx/logins")
LARGEST = 500_000  # bytes of a Config or Secret, in every engine
NAME_LENGTH, HASH_LENGTH = 26, 10
STUCK_AFTER = 300.0  # seconds without any change
ALERT = "DeployRolledBack"
ALERT_FOR = timedelta(hours=1)
FAILED_STATES = ("rollback_started", "rollback_completed", "rollback_paused", "paused")
ACTIVE_STATES = ("updating", "rollback_started")
INTERVAL = 0.5  # seconds between two looks
SETTLED = 5.0  # seconds for which everything must run: a task may end at once, and be started again

Project = dict[str, Any]


# --- the stack file -----------------------------------------------------------------------------


def stack_file(project: Project, images: dict[str, str], environment: dict[str, str]) -> Project:
    """What `docker stack deploy` accepts of a project.

    Args:
        project: as `docker compose config` prints it.
        images: of the services that are built, in the registry.
        environment: has the values of secrets that name a variable.

    Raises:
        StackError: a mounted file is too large for Swarm.
    """
    objects = Objects(project["name"], project.get("x-only", {}))
    services = {
        name: _service(service, images.get(name, ""), objects)
        for name, service in project["services"].items()
    }
    for kind in ("configs", "secrets"):
        for name, source in project.get(kind, {}).items():
            objects.declare(kind, name, source, environment)
    return {
        "version": "3.9",
        "services": services,
        "networks": {
            name: _network(network or {}) for name, network in project["networks"].items()
        },
        "volumes": project.get("volumes", {}),
        "configs": objects.configs,
        "secrets": objects.secrets,
    }


class Objects:
    """The Configs and Secrets of a stack file.

    Their content never changes in Swarm, so a hash of it is a part of the name.
    """

    def __init__(self, stack: str, only: dict[str, str]) -> None:
        self._stack = stack[:NAME_LENGTH]
        self.only = only  # patterns of file names, by the folder's place in containers
        self.configs: Project = {}
        self.secrets: Project = {}

    def add(self, kind: str, path: Path) -> str:
        """Add a file, and return the name that services use for it."""
        content = path.read_bytes()
        if len(content) > LARGEST:
            raise StackError(f"{path}: Swarm takes no file of more than {LARGEST} bytes")
        name = _hashed(re.sub(r"[^\w.-]", "-", path.name), content)
        getattr(self, kind)[name] = {"name": f"{self._stack}-{name}", "file": str(path)}
        return name

    def declare(
        self, kind: str, name: str, source: dict[str, Any], environment: dict[str, str]
    ) -> None:
        """Add an object of the project's own list; the content of `environment` is a variable's."""
        if "file" in source:
            content = Path(source["file"]).read_bytes()
            result = {"file": source["file"]}
        elif "environment" in source:
            # The line end, because Swarm takes no empty secret.
            text = environment.get(source["environment"], "") + "\n"
            content, result = text.encode(), {"content": text}
        else:
            getattr(self, kind)[name] = source  # made by somebody else
            return
        getattr(self, kind)[name] = {"name": f"{self._stack}-{_hashed(name, content)}", **result}


def _hashed(name: str, content: bytes) -> str:
    """A name that is new if the content is; with the stack's in front it has at most 64 letters."""
    return f"{name[:NAME_LENGTH]}-{hashlib.sha256(content).hexdigest()[:HASH_LENGTH]}"


def _service(service: dict[str, Any], image: str, objects: Objects) -> dict[str, Any]:
    result = {key: value for key, value in service.items() if key not in DROPPED and value}
    result["image"] = image or service["image"]
    result["ports"] = [_port(port) for port in service.get("ports", []) if "host_ip" not in port]
    result["volumes"] = [
        {"type": "tmpfs", "target": target.partition(":")[0]} for target in service.get("tmpfs", [])
    ]
    for volume in service.get("volumes", []):
        if volume["type"] != "bind":
            result["volumes"].append(volume)
            continue
        kind = "secrets" if volume["target"] in SECRET_FOLDERS else "configs"
        result.setdefault(kind, []).extend(_files(volume, kind, objects))
    result["deploy"] = _deploy(service)
    return result


def _deploy(service: dict[str, Any]) -> dict[str, Any]:
    """The section `deploy`, with the limits, and with a name that stands for every task."""
    section = service.get("deploy", {})
    resources = section.get("resources", {})
    limits = {
        limit: service[key]
        for limit, key in (("memory", "mem_limit"), ("pids", "pids_limit"))
        if key in service
    }
    resources |= {"limits": limits | resources.get("limits", {})}
    return {"endpoint_mode": "dnsrr", **section, "resources": resources}


def _port(port: dict[str, Any]) -> dict[str, Any]:
    """A port of the node itself; Swarm's own proxy would hide the clients' addresses."""
    return {
        "target": port["target"],
        "published": int(port["published"]),
        "protocol": port["protocol"],
        "mode": "host",
    }


def _files(volume: dict[str, Any], kind: str, objects: Objects) -> Iterator[dict[str, Any]]:
    """A mounted file, or every file of a mounted folder, as objects."""
    source, target = Path(volume["source"]), volume["target"]
    if source.is_file():
        yield {"source": objects.add(kind, source), "target": target}
    for path in sorted(source.rglob(objects.only.get(target, "*"))) if source.is_dir() else ():
        inner = path.relative_to(source)
        hidden = any(part.startswith(".") for part in inner.parts)
        if path.is_file() and path.stat().st_size and not hidden:
            yield {"source": objects.add(kind, path), "target": f"{target}/{inner}"}


def _network(network: dict[str, Any]) -> dict[str, Any]:
    kept = ("name", "internal", "attachable", "external")
    return {"driver": "overlay"} | {key: network[key] for key in kept if key in network}


# --- the swarm ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Service:
    """A service of a deployed stack."""

    update: str  # the state of the update that the last deployment began; empty if there was none
    objects: set[str]  # ids of the Configs and Secrets that it uses, or would after a rollback


def _objects(spec: dict[str, Any]) -> Iterator[str]:
    container = spec.get("TaskTemplate", {}).get("ContainerSpec", {})
    for config in container.get("Configs") or []:
        yield config["ConfigID"]
    for secret in container.get("Secrets") or []:
        yield secret["SecretID"]


def _labelled(nodes: list[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    return [node for node in nodes if node["Spec"]["Labels"].get(label) == "true"]


class Manager:
    """The engine of a manager of the swarm."""

    def __init__(self, host: str) -> None:
        """Take the address that SWARM_HOST has; empty for this machine's engine."""
        self.docker = ["docker", *(["--host", host] if host else [])]

    def output(self, *command: str) -> str:
        """What a command of Docker's prints.

        Raises:
            StackError: it failed.
        """
        done = subprocess.run(
            [*self.docker, *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise StackError(f"docker {' '.join(command[:2])}: {done.stderr.strip()}")
        return done.stdout

    def inspect(self, what: str, ids: list[str]) -> list[dict[str, Any]]:
        """The engine's details of nodes, services or other things."""
        return json.loads(self.output(what, "inspect", *ids)) if ids else []

    def check(self) -> None:
        """Raise StackError if the stack cannot run here, and say what to do."""
        state = json.loads(self.output("info", "--format", "{{json .Swarm}}"))
        if not state["ControlAvailable"]:
            raise StackError(
                "this engine is not a manager of a swarm: make one (docker swarm init), or name "
                "one in SWARM_HOST, such as ssh://user@manager"
            )
        nodes = self.inspect("node", self.output("node", "ls", "--quiet").split())
        add = "docker node update --label-add"
        if not _labelled(nodes, "nginx"):
            raise StackError(f"no node is to run nginx: {add} nginx=true NODE")
        if len(keeping := _labelled(nodes, "data")) != 1:
            raise StackError(
                f"{len(keeping)} nodes have the label data=true, but one must keep the data of "
                f"Prometheus, Alertmanager and Grafana: {add} data=true NODE"
            )

    def services(self, stack: str) -> dict[str, Service]:
        """The services of a stack; none before its first deployment."""
        label = f"label=com.docker.stack.namespace={stack}"
        ids = self.output("service", "ls", "--quiet", "--filter", label).split()
        found = {}
        for each in self.inspect("service", ids):
            specs = (each["Spec"], each.get("PreviousSpec") or {})
            found[each["Spec"]["Name"]] = Service(
                (each.get("UpdateStatus") or {}).get("State", ""),
                {identity for spec in specs for identity in _objects(spec)},
            )
        return found

    def replicas(self, stack: str) -> dict[str, str]:
        """The running and wanted tasks of each service, such as `2/3`."""
        lines = self.output("stack", "services", stack, "--format", "{{.Name}} {{.Replicas}}")
        return {line.split()[0]: line.split()[1] for line in lines.splitlines()}

    def problems(self, service: str) -> list[str]:
        """What went wrong with the latest tasks of a service."""
        lines = self.output("service", "ps", "--no-trunc", "--format", "{{.Error}}", service)
        return list(dict.fromkeys(filter(None, lines.splitlines())))[:3]


def deploy(values: dict[str, str]) -> int:
    """Build, push and deploy; returns when every task runs, 1 if an update was rolled back.

    Raises:
        StackError: a setting or a label is missing, a step failed, or nothing changes any more.
    """
    registry = values.get("SWARM_REGISTRY", "").rstrip("/")
    if not registry:
        raise StackError(
            "SWARM_REGISTRY is not set: where every node can get the images that are built here, "
            "such as registry.example.com/team"
        )
    manager = Manager(values.get("SWARM_HOST", ""))
    manager.check()
    project = read_project(values)
    content = stack_file(project, push(project, registry), values)
    stack = project["name"]
    _deploy_file(manager, stack, content)
    if failed := wait(manager, stack):
        for service in failed:
            _report(manager, service, project)
        return 1
    _remove_unused(manager, stack)
    progress(f"{stack} runs: docker stack services {stack}")
    return 0


def read_project(values: dict[str, str], *options: str) -> Project:
    """What Compose makes of its files, together with compose.swarm.yaml."""
    files = values.get("COMPOSE_FILE") or "compose.yaml"
    if OVERLAY not in files.split(os.pathsep):
        files = os.pathsep.join((files, OVERLAY))
    os.environ["COMPOSE_FILE"] = files
    compose.name_versions(values)
    command = ["docker", "compose", *options, "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StackError("Compose refuses its files: the lines above say why")
    return json.loads(done.stdout)


def push(project: Project, registry: str) -> dict[str, str]:
    """Build the images and push them; returns the address of each, with its digest."""
    services = project["services"]
    built = [name for name, service in services.items() if "build" in service]
    compose.build(*built)
    here = Manager("")
    images = {}
    for name in built:
        local = services[name].get("image") or f"{project['name']}-{name}"
        identity = here.output("image", "inspect", "--format", "{{.Id}}", local)
        repository = f"{registry}/{name}"
        tagged = f"{repository}:{identity.partition(':')[2][:12]}"
        progress(f"pushing {tagged}")
        here.output("tag", local, tagged)
        here.output("push", "--quiet", tagged)
        (details,) = here.inspect("image", [tagged])
        images[name] = next(
            each for each in details["RepoDigests"] if each.startswith(f"{repository}@")
        )
    return images


def _deploy_file(manager: Manager, stack: str, content: Project) -> None:
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:  # private
        options = ("--with-registry-auth", "--prune", "--compose-file")
        path = str(write(content, Path(folder)))
        if subprocess.call([*manager.docker, "stack", "deploy", *options, path, stack]):
            raise StackError("not deployed: the lines above say why")


def write(content: Project, folder: Path) -> Path:
    """Write a stack file, and beside it the secrets that come from variables."""
    for source in (*content["configs"].values(), *content["secrets"].values()):
        if "content" in source:
            path = folder / source["name"]
            path.write_text(source.pop("content"))
            source["file"] = str(path)
    path = folder / "stack.json"
    path.write_text(json.dumps(content))  # JSON is YAML, too
    return path


def wait(manager: Manager, stack: str) -> list[str]:
    """Wait until every task runs as wanted; returns the services whose update failed."""
    since, last = time.monotonic(), "unknown"
    failed: set[str] = set()
    while True:
        services, replicas = manager.services(stack), manager.replicas(stack)
        # Remembered: if Swarm replaces a bad task after the rollback, the state becomes completed.
        failed |= {name for name, each in services.items() if each.update in FAILED_STATES}
        waiting = [
            f"{name} {count} {services[name].update}".rstrip()
            for name, count in sorted(replicas.items())
            if not is_complete(count) or services[name].update in ACTIVE_STATES
        ]
        if (state := ", ".join(waiting)) != last:
            since, last = time.monotonic(), state
            if waiting:
                progress(f"waiting for {state}")
        if not waiting and time.monotonic() > since + SETTLED:
            return sorted(failed)
        if waiting and time.monotonic() > since + STUCK_AFTER:
            problems = {
                problem
                for name, count in replicas.items()
                if not is_complete(count)
                for problem in manager.problems(name)
            }
            raise StackError(f"nothing changed for {STUCK_AFTER:.0f} s: {'; '.join(problems)}")
        time.sleep(INTERVAL)


def is_complete(count: str) -> bool:
    """Whether all tasks run. While the task of a global service restarts, none is wanted."""
    running, _, wanted = count.partition("/")
    return running == wanted != "0"


def _report(manager: Manager, service: str, project: Project) -> None:
    """Print why an update failed, and let Alertmanager send the alert."""
    # Swarm ends a task whose health check fails. If the app exits with status 0, it has no error.
    problems = "; ".join(manager.problems(service)) or (
        f"its tasks ended, or their health check failed: see docker service logs {service}"
    )
    progress(f"{service}: the new version failed and was rolled back: {problems}")
    services = project["services"]
    links = services["prometheus"]["environment"]
    labels = (f"alertname={ALERT}", "severity=ticket", f"service={service}")
    annotations = {
        "summary": f"A new version of {service} failed and was rolled back",
        "description": f"The old version runs on. Why the new one failed: {problems}",
        "runbook_url": links["RUNBOOKS_URL"],
        "dashboard_url": f"{links['GRAFANA_URL']}/d/stack-overview",
    }
    end = (datetime.now(UTC) + ALERT_FOR).isoformat(timespec="seconds")
    command = [
        *("run", "--rm", "--network", f"{project['name']}_telemetry", "--entrypoint", "amtool"),
        *(services["alertmanager"]["image"], "alert", "add", *labels, f"--end={end}"),
        *(f"--annotation={name}={text}" for name, text in annotations.items()),
        "--alertmanager.url=http://alertmanager:9093",
    ]
    manager.output(*command)


def _remove_unused(manager: Manager, stack: str) -> None:
    """Remove the Configs and Secrets of a stack that no service needs, not even for a rollback."""
    used = {each for service in manager.services(stack).values() for each in service.objects}
    label = f"label=com.docker.stack.namespace={stack}"
    for kind in ("config", "secret"):
        ids = manager.output(kind, "ls", "--quiet", "--filter", label).split()
        if unused := [each for each in ids if each not in used]:
            manager.output(kind, "rm", *unused)


# --- consoles -----------------------------------------------------------------------------------


def consoles(values: dict[str, str]) -> int:
    """Serve Prometheus, Alertmanager and Grafana on the manager's loopback until Ctrl-C."""
    host = values.get("SWARM_HOST", "")
    manager = Manager(host)
    project = read_project(values, "--profile", "consoles")
    gate = project["services"]["console-gate"]
    container = manager.output("create", *_gate_options(gate)).strip()
    try:
        for volume in gate["volumes"]:
            source = volume["source"] + ("/." if Path(volume["source"]).is_dir() else "")
            manager.output("cp", source, f"{container}:{volume['target']}")
        manager.output("network", "connect", f"{project['name']}_telemetry", container)
        ports = [port["published"] for port in gate["ports"]]
        for port in ports:
            print(f"http://localhost:{port}")
        if host.startswith("ssh://"):
            forwards = " ".join(f"-L {port}:localhost:{port}" for port in ports)
            print(f"from this machine: ssh -N {forwards} {host}")
        return subprocess.call([*manager.docker, "start", "--attach", container])
    except KeyboardInterrupt:
        return 0
    finally:
        manager.output("rm", "--force", "--volumes", container)


def _gate_options(gate: dict[str, Any]) -> list[str]:
    """What `docker create` needs for a service of Compose's."""
    options = ["--cap-drop=ALL", "--security-opt=no-new-privileges:true"]
    options += [f"--user={gate['user']}", f"--memory={gate['mem_limit']}"]
    options += [f"--tmpfs={target}" for target in gate["tmpfs"]]
    options += [f"--env={name}={_plain(value)}" for name, value in gate["environment"].items()]
    options += [
        f"--publish={port['host_ip']}:{port['published']}:{port['target']}"
        for port in gate["ports"]
    ]
    return [*options, gate["image"], *map(_plain, gate["command"])]


def _plain(value: str) -> str:
    """A value of `docker compose config`, which doubles each dollar sign."""
    return value.replace("$$", "$")
