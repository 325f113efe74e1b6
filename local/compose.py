"""Runs the stack in containers, with Docker Compose."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

from local.checks import CACHE_SCRIPT, cache_problem
from local.console import progress, show, warn
from local.excerpt import excerpt, not_loaded
from local.settings import ROOT, SERVICES, StackError, app_version

BASE_IMAGES = ("NGINX_IMAGE", "PYTHON_IMAGE")
SERVICE_IMAGES = ("NGINX_EXPORTER_IMAGE", "PROMETHEUS_IMAGE", "ALERTMANAGER_IMAGE", "GRAFANA_IMAGE")
LEAST_FREE_KILOBYTES = 32_000
REFUSED = re.compile(r"flask-health-check: status (4\d\d)")
# This many failed health checks are a problem; a single one may fail during the start.
FAILED_CHECKS = 2
RUNS_ON = (
    "Correct this and run ./stack up again. Other services may still run; ./stack down ends them"
)
# Loads the app as gunicorn does, in a container of its own to which nginx sends no requests.
CHECK = ("gunicorn", "--check-config", "--config", "/stack/gunicorn.conf.py")
# `docker compose ps` fails if a container is removed while it lists them. Then it is run
# again, up to this many times in all.
LISTINGS = 20
SERVICE_NAMES = {service.name for service in SERVICES}
# Where services write: a full disk there fails requests while every health check passes.
WRITTEN = {"nginx-proxy": "/var/cache/nginx", "prometheus": "/prometheus"}


@dataclasses.dataclass(frozen=True)
class Container:
    """A container of this project."""

    id: str
    service: str
    state: str  # of its process, as the engine names it
    healthy: bool  # it runs, and its health check passes if it has one
    unhealthy: bool  # its health check has failed too often
    restarting: bool  # it waits for its next start
    ended: bool  # since its start, at least once
    problem: str  # what the last health check said, if the last ones failed
    refusals: list[str]  # statuses of an app that answers its health check with an error


def engine_answers() -> bool:
    """Whether Docker Compose is installed and an engine answers it."""
    try:
        for command in (["docker", "compose", "version"], ["docker", "info"]):
            subprocess.run(command, capture_output=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def exists() -> bool:
    """Whether this project has containers, running or not."""
    return bool(_ids("--all"))


def runs() -> bool:
    """Whether containers of this project run."""
    return bool(_ids())


def ports_are_local() -> bool:
    """Whether the engine publishes ports on this machine, as far as the environment tells."""
    return os.environ.get("DOCKER_HOST", "unix://").startswith("unix://")


def up(values: dict[str, str], *, attach: bool) -> int:
    """Pull, build and start; returns when everything is healthy, or with `attach` when it ends.

    If it fails, the services that were started keep running, as with Compose itself: a stack whose
    change fails may still serve its users.

    Raises:
        StackError: an image is missing, or a service failed; with its log, readable.
    """
    name_versions(values)
    _pull(values)
    if attach:
        return call("up", "--build")
    build()
    if (replicas := _replicas()) and _has_changed(replicas):
        _replace(replicas)
    if code := _start():
        return code
    full = list(_full_disks())
    for problem in full:
        warn(problem)
    return 1 if full else 0


def reload(values: dict[str, str], service: str) -> int:
    """Load the app's changed code, or nginx's changed configuration; no request fails.

    Raises:
        StackError: it is wrong, or nothing runs; the old one stays in use.
    """
    if service == "nginx-proxy":
        if call("exec", "-T", service, "nginx", "-t", "-q"):
            raise StackError("not reloaded, because the lines above say what is wrong")
        return call("kill", "--signal=HUP", service)
    name_versions(values)
    build("flask-app")
    if not (replicas := _replicas()):
        raise StackError("flask-app does not run: ./stack up")
    _replace(replicas)
    return 0


def run_command(values: dict[str, str], command: list[str]) -> int:
    """Run a command of the app's in a container of its own; returns its exit status."""
    name_versions(values)
    if call("build", "--quiet", "flask-app"):
        raise StackError("the app's image could not be built: the lines above say why")
    terminal = [] if sys.stdin.isatty() and sys.stdout.isatty() else ["--no-TTY"]
    return call("run", "--rm", "--no-deps", *terminal, "flask-app", *command)


def status() -> int:
    """Print what runs; 0 if everything is healthy."""
    code = call("ps", "--all")
    containers = list(_containers())
    problems = [
        f"{each.service} is not healthy: {each.problem or each.state}"
        for each in containers
        if not each.healthy and each.service in SERVICE_NAMES
    ]
    problems += list(_full_disks())
    printed = output("exec", "-T", "nginx-proxy", "sh", "-c", CACHE_SCRIPT)
    if problem := cache_problem(printed):
        problems.append(problem)
    for problem in problems:
        warn(problem)
    return 1 if problems else code


def logs(services: list[str], *, follow: bool) -> int:
    """`docker compose logs`, with control characters escaped."""
    options = ["--tail=100", *(["--follow"] if follow else [])]
    return show(["docker", "compose", "logs", *options, *services], ROOT)


def down(values: dict[str, str], *, now: bool) -> int:
    """Remove the containers; `now`, or Ctrl-C, cuts off requests in flight."""
    if now:
        return call("down", "--timeout", "0")
    limit = values.get("FLASK_APP_TIMEOUT") or "65"
    try:
        progress(
            f"nginx-proxy and flask-app may take {limit} s each to finish their requests; "
            "Ctrl-C, or ./stack down --now, cuts them off"
        )
        return call("down")
    except KeyboardInterrupt:
        progress("ending everything at once")
        return call("down", "--timeout", "0")


def address(service: str, port: int) -> str:
    """The URL, on this machine, of a port that Compose publishes."""
    host, _, number = output("port", service, str(port)).strip().rpartition(":")
    if not number:
        raise StackError(f"{service} does not run: ./stack up")
    everywhere = ("0.0.0.0", "[::]")  # noqa: S104
    return f"http://{'127.0.0.1' if host in everywhere else host}:{number}"


def call(*arguments: str) -> int:
    """Run Docker Compose in this terminal, and return its exit status."""
    return subprocess.call(["docker", "compose", *arguments], cwd=ROOT)


def output(*arguments: str) -> str:
    """What Docker Compose prints."""
    return _output("docker", "compose", *arguments)


def build(*services: str) -> None:
    """Build images, and raise StackError if one can't be built."""
    if call("build", *services):
        raise StackError("an image could not be built: the lines above say why")


def _start() -> int:
    """`docker compose up --wait`, which ends as soon as a container fails."""
    before = {container.id for container in _containers()}
    began = time.time()
    with subprocess.Popen(["docker", "compose", "up", "--detach", "--wait"], cwd=ROOT) as waiting:
        try:
            while waiting.poll() is None:
                _refuse_failed(_containers(), began, before)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    waiting.wait(1)
        except BaseException:
            waiting.send_signal(signal.SIGINT)
            raise
    if waiting.returncode:
        _refuse_failed(_containers(), began, before)
    return waiting.returncode


def _app_containers() -> list[Container]:
    return [each for each in _containers() if each.service == "flask-app"]


def _replicas() -> list[Container]:
    """The app's containers; none if one of them does not run."""
    replicas = _app_containers()
    return replicas if all(each.state == "running" for each in replicas) else []


def _has_changed(replicas: list[Container]) -> bool:
    """Whether Compose would end these replicas of the app, to start others in their place."""
    options = ("--detach", "--no-deps", "--no-build", f"--scale=flask-app={len(replicas)}")
    command = ["docker", "compose", "--dry-run", "up", *options, "flask-app"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return "Recreate" in done.stdout + done.stderr


def _replace(replicas: list[Container]) -> None:
    """Replace the app's containers one by one, each when its successor is healthy.

    nginx asks a replica from its start, and until its container has ended, since DNS names it. So
    the code is tried before, and one that stops refuses connections: nginx then asks another one.
    """
    if call("run", "--rm", "--no-deps", "--no-TTY", "flask-app", *CHECK):
        raise StackError("the app does not load, as the lines above say. Its old replicas run on")
    for replica in replicas:
        progress("starting a replica of flask-app with the present code")
        others = {each.id for each in _app_containers()}
        try:
            _add_replica(others)
        except BaseException:
            new = {each.id for each in _app_containers()} - others
            _output("docker", "rm", "--force", *new)
            progress("the old replicas of flask-app run on")
            raise
        progress("ending an old replica, which finishes its requests")
        _output("docker", "stop", replica.id)
        _output("docker", "rm", replica.id)


def _add_replica(others: set[str]) -> None:
    """Start one replica of the app beside these; returns when it is healthy.

    `up --wait` would also wait for the others. On a busy machine, their checks may time out.
    """
    began = time.time()
    options = ("--detach", "--no-deps", "--no-recreate", f"--scale=flask-app={len(others) + 1}")
    if call("up", *options, "flask-app"):
        raise StackError("the new replica of flask-app did not start: the lines above say why")
    while True:
        new = [each for each in _app_containers() if each.id not in others]
        _refuse_failed(new, began, set())
        if new and all(each.healthy for each in new):
            return
        if gave_up := [each for each in new if each.unhealthy]:
            raise StackError(f"the new replica of flask-app is not healthy: {gave_up[0].problem}")
        time.sleep(1)


def _pull(values: dict[str, str]) -> None:
    """Refresh the images to build on, and pull those that are missing."""
    missing = []
    for name in (*BASE_IMAGES, *SERVICE_IMAGES):
        image = values[name]
        # For a missing image, docker prints an empty line.
        here = bool(_output("docker", "image", "inspect", "--format", "{{.Id}}", image).strip())
        if here and name in SERVICE_IMAGES:
            continue
        progress(f"pulling {image}")
        pull = ["docker", "pull", "--quiet", image]
        done = subprocess.run(pull, capture_output=True, text=True, check=False)
        if done.returncode and here:
            progress(f"{image} could not be pulled, so the one on this machine is used")
        elif done.returncode:
            missing.append(f"  {name}={image}: {done.stderr.strip()}")
    if missing:
        raise StackError(
            "\n".join(
                (
                    "these images are not on this machine and can't be pulled:",
                    *missing,
                    "./stack up --local runs the same stack without them",
                )
            )
        )


def _refuse_failed(containers: Iterable[Container], since: float, before: set[str]) -> None:
    """Raise StackError if a container ended, or its app refuses the health check.

    Compose itself ends some of the containers from before the start, to replace them.
    """
    for container in containers:
        log = _logs(container.id, since)
        ended = container.restarting or (container.ended and container.id not in before)
        if ended or (container.problem and not_loaded(log)):
            raise StackError(
                f"{container.service} failed to start. Its log says:\n{excerpt(log)}\n{RUNS_ON}"
            )
        if len(container.refusals) >= FAILED_CHECKS and container.service == "flask-app":
            raise StackError(
                f"the app answers its health check with {container.refusals[-1]} instead of 200. "
                "It needs a route /flask-health-check that answers 200: see README.md, "
                "'Put your own app in'. "
                f"Its log ends with:\n{excerpt(log)}\n{RUNS_ON}"
            )


def _logs(container: str, since: float) -> str:
    command = ["docker", "logs", "--since", f"{since:.3f}", container]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", check=False
    )
    return done.stdout


def _ids(*options: str) -> list[str]:
    """The ids of this project's containers.

    Raises:
        StackError: Compose cannot list them; with its reason.
    """
    command = ["docker", "compose", "ps", "--quiet", *options]
    for _ in range(LISTINGS):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not done.returncode:
            return done.stdout.split()
        if "no such container" not in done.stderr.lower():
            break
    raise StackError(f"Docker Compose cannot list the containers: {done.stderr.strip()}")


def _containers() -> Iterator[Container]:
    ids = _ids("--all")
    if not ids:
        return
    for details in json.loads(_output("docker", "inspect", *ids) or "[]"):
        state = details["State"]
        health = state.get("Health") or {"Status": "none"}
        checks = health.get("Log") or []
        failed = [check for check in checks[-FAILED_CHECKS:] if check["ExitCode"]]
        yield Container(
            details["Id"],
            details["Config"]["Labels"]["com.docker.compose.service"],
            state["Status"],
            healthy=state["Status"] == "running" and health["Status"] in ("healthy", "none"),
            unhealthy=health["Status"] == "unhealthy",
            restarting=state["Status"] == "restarting",
            ended=details["RestartCount"] > 0 or state["Status"] in ("exited", "dead"),
            problem=_last_line(failed[-1]["Output"]) if len(failed) == FAILED_CHECKS else "",
            # Not only the last ones: on a busy machine a check may time out between two refusals.
            refusals=REFUSED.findall("\n".join(check["Output"] for check in checks)),
        )


def _full_disks() -> Iterator[str]:
    for service, folder in WRITTEN.items():
        line = output("exec", "-T", service, "df", "-Pk", folder).strip().splitlines()[-1:]
        fields = line[0].split() if line else []
        if len(fields) > 3 and fields[3].isdecimal() and int(fields[3]) < LEAST_FREE_KILOBYTES:  # noqa: PLR2004
            yield f"the disk is full: {int(fields[3]) // 1024} MB are free for {service}'s {folder}"


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def name_versions(values: dict[str, str]) -> None:
    """Set the variables that compose.yaml builds into the images."""
    os.environ.setdefault("STACK_REVISION", _revision())
    os.environ["APP_VERSION"] = app_version(values)


def _revision() -> str:
    """Git's name for what is built; empty outside git."""
    return _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD").strip()


def _output(*command: str) -> str:
    """What a command prints; nothing if it does not exist. Errors are ignored."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:
        return ""
    return done.stdout
