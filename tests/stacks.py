"""Real stacks for the end-to-end tests: one interface, two kinds (local processes, Compose).

Each stack has its own ports and its own state, so it does not disturb others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import random
import shutil
import signal as signals
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from local.processes import Processes
from local.settings import DEFAULT_PORTS, ROOT, SERVICES, settings
from tests.remains import RUN

T = TypeVar("T")

REACHABLE = ROOT / "tests" / "compose.reachable.yaml"
SMALL_DISKS = ROOT / "tests" / "compose.small-disks.yaml"
COMPOSE_FILES = (ROOT / "compose.yaml", ROOT / "tests" / "compose.test.yaml", REACHABLE)
# The app with routes that are slow or fail on demand; see tests/apps/.
TEST_SETTINGS = {"WSGI_APP": "faulty:app"}
METRICS_PORTS = {
    "flask-app": 9200,
    "nginx-exporter": 9113,
    "nginx-access-exporter": 9114,
    "prometheus": 9090,
    "alertmanager": 9093,
}


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of a service: its ids on this machine and in its container, and its parent's."""

    pid: int
    inner_pid: int
    parent: int
    command: str


# Each process of pytest-xdist has its own range. All are below the ports that Linux gives to
# connections: a connection could occupy a port before its server does.
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(10_000 + 1_000 * _PROCESS, 11_000 + 1_000 * _PROCESS)
_SHUFFLED_PORTS = itertools.cycle(random.sample(_PORTS, len(_PORTS)))


def free_port() -> int:
    """Return a free port that no recent call returned."""
    while True:
        port = next(_SHUFFLED_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def wait_until(condition: Callable[[], T], timeout: float, what: str) -> T:
    """Return the first true value of `condition`, which is called ten times a second.

    Args:
        condition: called until it returns something true; a failed request counts as false.
        timeout: seconds.
        what: what the test waits for, named in the failure.
    """
    deadline = time.monotonic() + timeout
    last: Any = None
    while time.monotonic() < deadline:
        try:
            last = condition()
            if last:
                return last
        except requests.RequestException as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout} s: {what} (last: {last!r})")


def settle(read: Callable[[], T], quiet: float, timeout: float, what: str) -> T:
    """Return what `read` returns, once that has not changed for `quiet` seconds.

    Args:
        read: a failed request counts as no change.
        quiet: seconds.
        timeout: seconds.
        what: what the test waits for, named in the failure.
    """
    last: Any = None
    since = time.monotonic()

    def unchanged() -> bool:
        nonlocal last, since
        now = read()
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() > since + quiet

    wait_until(unchanged, timeout, what)
    return last


def wait_for_in_flight(stack: Stack, count: int) -> None:
    """Wait until Flask works on at least `count` requests that are no health checks."""

    def in_flight() -> bool:
        return stack.total("flask-app", "gunicorn_worker_requests_in_flight") >= count

    what = f"{count} requests in flight"
    # The metric includes health checks, but none of them takes a second.
    wait_until(lambda: settle(in_flight, 1, 30, what), 30, what)


class Stack:
    """A running stack. URLs have no slash at the end."""

    kind: str

    def __init__(self, env: dict[str, str]) -> None:
        self.ports = {name: free_port() for name in DEFAULT_PORTS}
        self.settings = TEST_SETTINGS | env
        # Directly below the temporary folder, because a Unix socket's path must be short.
        self.run = Path(tempfile.mkdtemp(prefix=f"stack-{RUN}-"))
        self.http = f"http://127.0.0.1:{self.ports['HTTP_PORT']}"
        self.prometheus = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}"
        self.alertmanager = f"http://127.0.0.1:{self.ports['ALERTMANAGER_PORT']}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which the stack is started and controlled."""
        numbers = {name: str(port) for name, port in self.ports.items()}
        return os.environ | numbers | {"STACK_RUN_DIR": str(self.run)} | self.settings

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ./stack on this stack, and return however it ends."""
        return stack_command(*arguments, env=self.environment)

    def up(self) -> None:
        """Start every service and wait until all are healthy."""
        raise NotImplementedError

    def down(self) -> None:
        """End every service and remove the stack's data."""
        raise NotImplementedError

    def stop(self, service: str) -> None:
        """Stop a service as an operator would."""
        raise NotImplementedError

    def start(self, service: str) -> None:
        """Start a stopped service and wait until it is healthy."""
        raise NotImplementedError

    def restart(self, service: str) -> None:
        """Stop and start a service."""
        self.stop(service)
        self.start(service)

    def main_process(self, service: str) -> int:
        """The id, on this machine, of a service's main process, such as nginx's master."""
        raise NotImplementedError

    def signal(self, service: str, process: Process, signal: signals.Signals) -> None:
        """Send a signal to one process of a service."""
        raise NotImplementedError

    def logs(self, service: str) -> str:
        """The service's log."""
        raise NotImplementedError

    def address(self, service: str, port: int) -> str:
        """The URL of a port that is for other services only."""
        raise NotImplementedError

    @property
    def flask(self) -> str:
        """The URL of the app itself, not through nginx."""
        raise NotImplementedError

    @property
    def host_address(self) -> str:
        """The address of this machine, as the stack's services reach it."""
        raise NotImplementedError

    def kill(self, service: str, signal: signals.Signals = signals.SIGKILL) -> None:
        """Send a signal to the main process of a service."""
        pid = self.main_process(service)
        process = next(process for process in self.processes(service) if process.pid == pid)
        self.signal(service, process, signal)

    def processes(self, service: str) -> list[Process]:
        """The service's processes, its main one first."""
        main, *others = family(self.main_process(service))
        found = [_process(main)]
        for pid in others:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.append(_process(pid))
        return found

    def metrics(self, service: str) -> str:
        """A service's metrics, as Prometheus scrapes them."""
        response = requests.get(
            f"{self.address(service, METRICS_PORTS[service])}/metrics", timeout=10
        )
        response.raise_for_status()
        return response.text

    def total(self, service: str, name: str, **labels: str) -> float:
        """The current sum of a service's samples with this name and these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics(service))
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def api(self, path: str, *, timeout: float = 30, **parameters: Any) -> Any:  # noqa: ANN401
        """What Prometheus answers below /api/v1/, within `timeout` seconds; fails on an error."""
        answer = requests.get(
            f"{self.prometheus}/api/v1/{path}", params=parameters, timeout=timeout
        ).json()
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of a PromQL expression; see `vector`."""
        return vector(self.api("query", query=expression, timeout=10))


def vector(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of an answer to an instant query: `[{"metric": labels, "value": number}, …]`."""
    return [
        {"metric": sample["metric"], "value": float(sample["value"][1])}
        for sample in data["result"]
    ]


class LocalStack(Stack):
    """The stack as local processes, started by ./stack."""

    kind = "local"

    def __init__(self, env: dict[str, str]) -> None:
        super().__init__(env)
        self._processes = Processes(self.run)

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"PYTHONPATH": str(ROOT / "tests" / "apps")}

    host_address = "127.0.0.1"

    @property
    def flask(self) -> str:
        return self.address("flask-app", 8000)

    def up(self) -> None:
        run([ROOT / "stack", "up", "--local"], self.environment)

    def down(self) -> None:
        if self._processes.running:
            run([ROOT / "stack", "down"], self.environment)
        shutil.rmtree(self.run)

    def stop(self, service: str) -> None:
        self._processes.supervisor("stopProcess", service)

    def start(self, service: str) -> None:
        self._processes.supervisor("startProcess", service)
        self._processes.wait_until_healthy(30, lambda _: None)

    def main_process(self, service: str) -> int:
        return self._processes.pid(service)

    def signal(self, service: str, process: Process, signal: signals.Signals) -> None:
        del service
        os.kill(process.pid, signal)

    def logs(self, service: str) -> str:
        return self._processes.log(service).read_text(errors="replace")

    def address(self, service: str, port: int) -> str:
        inner = {9200: "FLASK_METRICS_PORT", 8081: "NGINX_STATUS_PORT"}
        own = {each.container_port: each.port_variable for each in SERVICES if each.name == service}
        return f"http://127.0.0.1:{self.ports[(own | inner)[port]]}"


class ComposeStack(Stack):
    """The stack in containers, with the project's own compose.yaml."""

    kind = "compose"

    def __init__(self, env: dict[str, str]) -> None:
        super().__init__(env)
        self.project = f"stack-test-{RUN}-{uuid.uuid4().hex[:8]}"
        self.files = list(COMPOSE_FILES)
        self._addresses: dict[str, str] = {}  # used often, and slow to get from the engine

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {
            "COMPOSE_BAKE": "false",
            "COMPOSE_FILE": os.pathsep.join(map(str, self.files)),
            "COMPOSE_PROJECT_NAME": self.project,
            "FLASK_PORT": "0",  # each replica gets any free port
        }

    @property
    def flask(self) -> str:
        return f"http://{self.compose('port', 'flask-app', '8000').strip()}"

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` on this project."""
        if arguments[0] in ("up", "down", "stop"):
            self._addresses.clear()
        return run(["docker", "compose", *arguments], self.environment)

    def up(self) -> None:
        # Without Grafana, if its image cannot be pulled.
        services = self.compose("config", "--services").split()
        if not grafana_image():
            services.remove("grafana")
        self.compose("up", "--build", "--wait", *services)

    def down(self) -> None:
        self.compose("down", "--volumes", "--rmi", "local", "--remove-orphans", "--timeout", "5")
        shutil.rmtree(self.run)

    def stop(self, service: str) -> None:
        self.compose("stop", service)

    def start(self, service: str) -> None:
        self.compose("up", "--wait", "--no-deps", "--no-recreate", service)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, one per replica."""
        return self.compose("ps", "--quiet", service).split()

    def scale(self, replicas: int) -> None:
        """Run so many replicas of flask-app, without a change to those that run already."""
        options = ("--no-deps", "--no-recreate", "--wait", f"--scale=flask-app={replicas}")
        self.compose("up", "--detach", *options, "flask-app")

    def workers_killed(self) -> int:
        """How many of gunicorn's workers a SIGKILL has ended so far."""
        return self.logs("flask-app").count("was sent SIGKILL")

    def kill_container(self, container: str) -> None:
        """Kill one replica without warning."""
        run(["docker", "kill", container])

    @contextlib.contextmanager
    def paused(self, container: str) -> Iterator[None]:
        """A context in which the kernel runs none of a container's processes."""
        # On a busy machine the engine gives up: "unable to freeze".
        command = ["docker", "pause", container]
        wait_until(
            lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0,
            60,
            "the container to be paused",
        )
        try:
            yield
        finally:
            run(["docker", "unpause", container])

    def inspect(self, service: str) -> dict[str, Any]:
        """The engine's details of a service's first container."""
        return json.loads(run(["docker", "inspect", self.containers(service)[0]]))[0]

    def main_process(self, service: str) -> int:
        return self.inspect(service)["State"]["Pid"]

    def signal(self, service: str, process: Process, signal: signals.Signals) -> None:
        container = self.containers(service)[0]
        if process.inner_pid == 1 and signal is signals.SIGKILL:
            # The kernel ignores this signal from inside. The engine does not restart the container.
            self.kill_container(container)
        else:
            command = f"kill -{int(signal)} {process.inner_pid}"
            run(["docker", "exec", container, "sh", "-c", command])

    def logs(self, service: str) -> str:
        return self.compose("logs", "--no-log-prefix", "--no-color", service)

    def address(self, service: str, port: int) -> str:
        if service not in self._addresses:
            networks = self.networks(service)
            reached = networks.get("telemetry") or next(iter(networks.values()))
            self._addresses[service] = reached["IPAddress"]
        return f"http://{self._addresses[service]}:{port}"

    @property
    def host_address(self) -> str:
        return self.networks("alertmanager")["outside"]["Gateway"]

    def networks(self, service: str) -> dict[str, Any]:
        """The engine's details of a service's networks, by their names in compose.yaml."""
        networks = self.inspect(service)["NetworkSettings"]["Networks"]
        return {name.removeprefix(f"{self.project}_"): each for name, each in networks.items()}


KINDS: dict[str, type[Stack]] = {"local": LocalStack, "compose": ComposeStack}


@contextlib.contextmanager
def launch(kind: str, env: dict[str, str] | None = None, *files: Path) -> Iterator[Stack]:
    """A stack of this kind with other settings, for as long as the context lasts.

    Args:
        kind: of KINDS.
        env: the settings.
        files: more Compose files, if it runs in containers.
    """
    stack = KINDS[kind](env or {})
    if isinstance(stack, ComposeStack):
        stack.files += files
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@functools.cache
def engine_missing() -> str:
    """Why no stack can run in containers here; empty if one can."""
    try:
        run(["docker", "compose", "version"])
        run(["docker", "info"])
    except (OSError, AssertionError) as error:
        return str(error)
    return ""


def require_engine(what: str) -> None:
    """Skip the test if no engine answers, or fail it if STACK_REQUIRE_DOCKER is 1.

    Args:
        what: what the test needs the engine for.
    """
    if not engine_missing():
        return
    reason = f"no {what}: {engine_missing()}"
    if os.environ.get("STACK_REQUIRE_DOCKER") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@functools.cache
def grafana_image() -> bool:
    """Whether Grafana's image is on this machine or can be pulled."""
    image = settings()["GRAFANA_IMAGE"]
    for command in (["docker", "image", "inspect", image], ["docker", "pull", "--quiet", image]):
        if subprocess.run(command, capture_output=True, check=False, timeout=600).returncode == 0:
            return True
    return False


def children(pid: int) -> list[int]:
    """The ids of a process's children; none if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    return []


def family(*pids: int) -> list[int]:
    """The ids of processes and, behind them, of all their descendants."""
    found = list(pids)
    for pid in found:  # grows as children are found
        found += children(pid)
    return found


def process_status(pid: int) -> dict[str, str]:
    """What the kernel says of a process: see proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _process(pid: int) -> Process:
    status = process_status(pid)
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return Process(pid, int(status["NSpid"].split()[-1]), int(status["PPid"]), command)


def stack_command(
    *arguments: str, env: dict[str, str], seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ./stack, and return however it ends; `seconds` only so that a hang ends the test."""
    return subprocess.run(
        [ROOT / "stack", *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


def run(command: list[str | Path], env: dict[str, str] | os._Environ[str] | None = None) -> str:
    """Run a command and return its output; if it fails, fail the test with the output."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    words = " ".join(map(str, command))
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
