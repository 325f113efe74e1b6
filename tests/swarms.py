"""A real swarm for the tests: three engines in containers of this machine's engine.

Nothing here needs IPVS in the kernel, and neither does the stack: it has no virtual addresses.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from local.settings import ROOT, settings
from tests.remains import RUN
from tests.stacks import TEST_SETTINGS, free_port, run, stack_command, vector, wait_until

NODE_IMAGE = "stack-swarm-node"  # .ci/swarm-node makes it
NODES = (1, 2, 3)
# What an engine needs; --privileged would ask for more than this machine may have to give.
PRIVILEGES = (
    *("--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--device-cgroup-rule=a *:* rwm"),
    *("--cgroupns=private", "--security-opt=seccomp=unconfined"),
    *("--security-opt=apparmor=unconfined", "--security-opt=systempaths=unconfined"),
)
# Images that are not built: those of the nginx unit are on each node, the others on the manager.
UNIT = ("NGINX_EXPORTER_IMAGE",)
OTHERS = ("NGINX_IMAGE", "PROMETHEUS_IMAGE", "ALERTMANAGER_IMAGE")
OVERLAYS = ("compose.yaml", "compose.swarm.yaml", "tests/swarm/compose.yaml")
NAME = "shop"


class Swarm:
    """Three nodes and a registry; node 1 is the manager, and the first to run nginx."""

    def __init__(self) -> None:
        self.prefix = f"stack-test-{RUN}-{uuid.uuid4().hex[:8]}"
        self.sockets = Path(tempfile.mkdtemp(prefix=f"stack-{RUN}-"))
        self.registry = f"127.0.0.1:{free_port()}"
        # In each node, a registry with the same content has this address, too.
        self.settings = {
            **TEST_SETTINGS,
            "COMPOSE_BAKE": "false",
            "COMPOSE_FILE": os.pathsep.join(OVERLAYS),
            "COMPOSE_PROJECT_NAME": NAME,
            "GUNICORN_QUEUE_TIMEOUT": "20",  # the machine is busy
            "GUNICORN_WORKERS": "1",
            "SWARM_HOST": f"unix://{self.sockets}/node-1",
            "SWARM_MONITOR": "5s",
            "SWARM_REGISTRY": f"{self.registry}/team",
        }

    def up(self) -> None:
        """Start the nodes, join them, and fill the registry."""
        run(["docker", "network", "create", self.prefix])
        run(["docker", "volume", "create", self.prefix])
        port = self.registry.partition(":")[2]
        self._start("registry", f"--publish=127.0.0.1:{port}:{port}", "--env=REGISTRY_ONLY=1")
        for number in NODES:
            self._start(f"node-{number}", *PRIVILEGES, "--volume=/var/lib/docker", "--tmpfs=/run")
        for number in NODES:
            wait_until(lambda number=number: self.answers(number), 60, f"the engine of {number}")
        self.docker("swarm", "init", "--advertise-addr=eth0")
        token = self.docker("swarm", "join-token", "--quiet", "worker").strip()
        for number in NODES[1:]:
            manager = f"{self.address(1)}:2377"
            self.docker("swarm", "join", f"--token={token}", manager, node=number)
        self.docker("node", "update", "--label-add=nginx=true", "--label-add=data=true", "node-1")
        for number in NODES:
            self._load(number, UNIT + (OTHERS if number == 1 else ()))

    def _start(self, name: str, *options: str) -> None:
        script = ROOT / "tests" / "swarm" / "node.sh"
        given = [
            *(f"--name={self.prefix}-{name}", f"--hostname={name}", f"--network={self.prefix}"),
            f"--volume={self.prefix}:/var/lib/registry",
            f"--volume={self.sockets}:/sockets",
            f"--volume={script}:/node.sh:ro",
            f"--env=REGISTRY_PORT={self.registry.partition(':')[2]}",
        ]
        run(["docker", "run", "--detach", *given, *options, NODE_IMAGE, "/node.sh"])

    def _load(self, number: int, names: tuple[str, ...]) -> None:
        images = [settings()[name] for name in names]
        with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as saving:
            load = ["docker", f"--host=unix://{self.sockets}/node-{number}", "load"]
            subprocess.run(load, stdin=saving.stdout, capture_output=True, check=True)

    def down(self) -> None:
        """Remove everything, the images in this machine's engine included."""
        names = [f"{self.prefix}-{name}" for name in ("registry", *(f"node-{n}" for n in NODES))]
        subprocess.run(["docker", "kill", *names], capture_output=True, check=False)  # all at once
        for command in (
            ["docker", "rm", "--force", "--volumes", *names],
            ["docker", "network", "rm", self.prefix],
            ["docker", "volume", "rm", self.prefix],
        ):
            subprocess.run(command, capture_output=True, check=False)
        listed = run(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"]).split()
        ours = [each for each in listed if each.startswith((f"{self.registry}/", f"{NAME}-"))]
        subprocess.run(["docker", "rmi", *ours], capture_output=True, check=False)
        shutil.rmtree(self.sockets)

    # --- nodes ---

    def answers(self, number: int) -> bool:
        """Whether a node's engine answers."""
        command = ["docker", f"--host=unix://{self.sockets}/node-{number}", "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def address(self, number: int) -> str:
        """A node's address for clients."""
        (details,) = json.loads(run(["docker", "inspect", f"{self.prefix}-node-{number}"]))
        return details["NetworkSettings"]["Networks"][self.prefix]["IPAddress"]

    def kill(self, number: int) -> None:
        """Kill a node and all that runs on it, without warning."""
        run(["docker", "kill", f"{self.prefix}-node-{number}"])

    def start(self, number: int) -> None:
        """Start a killed node."""
        run(["docker", "start", f"{self.prefix}-node-{number}"])
        wait_until(lambda: self.answers(number), 60, f"the engine of {number}")

    def docker(self, *arguments: str, node: int = 1) -> str:
        """Run `docker` on a node's engine."""
        return run(["docker", f"--host=unix://{self.sockets}/node-{node}", *arguments])

    def on(self, number: int, script: str) -> str:
        """What a script of bash prints on a node; nothing if it fails."""
        command = ["docker", "exec", f"{self.prefix}-node-{number}", "bash", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    # --- the stack ---

    def deploy(self, **changed: str) -> subprocess.CompletedProcess[str]:
        """Run ./stack deploy; settings that are changed here stay changed if it succeeds."""
        done = stack_command("deploy", env=os.environ | self.settings | changed, seconds=400)
        if done.returncode == 0:
            self.settings |= changed
        return done

    def inside(self, service: str, *command: str) -> str:
        """Run a command in a service's container on node 1."""
        label = f"--filter=label=com.docker.swarm.service.name={NAME}_{service}"
        container = self.docker("ps", "--quiet", label).split()[0]
        return self.docker("exec", container, *command)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of a PromQL expression; see Stack.query."""
        query = urllib.parse.urlencode({"query": expression})
        text = self.inside(
            "prometheus", "wget", "-qO-", f"http://127.0.0.1:9090/api/v1/query?{query}"
        )
        return vector(json.loads(text)["data"])

    def alerts(self) -> list[dict[str, Any]]:
        """What Alertmanager has."""
        text = self.inside("alertmanager", "wget", "-qO-", "http://127.0.0.1:9093/api/v2/alerts")
        return json.loads(text)

    def tasks(self, service: str) -> set[str]:
        """The tasks of a service that should run, by their ids."""
        options = ("--quiet", "--no-trunc", "--filter=desired-state=running")
        return set(self.docker("service", "ps", *options, f"{NAME}_{service}").split())


@contextlib.contextmanager
def swarm_of_three() -> Iterator[Swarm]:
    """A swarm, for as long as the context lasts."""
    swarm = Swarm()
    try:
        swarm.up()
        yield swarm
    finally:
        swarm.down()
