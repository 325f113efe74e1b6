"""The metrics of a container's limits, in real containers that reach their limits."""

import contextlib
import json
import re
import subprocess
import uuid
from collections.abc import Iterator

import pytest
import requests

from local.settings import ROOT, settings
from tests.stacks import engine_missing, wait_until

MEBIBYTE = 2**20
MEMORY_LIMIT = ("--memory=64m", "--memory-swap=64m")

pytestmark = pytest.mark.skipif(bool(engine_missing()), reason=f"{engine_missing()}")


def docker(*arguments: str) -> str:
    command = ["docker", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def build(folder: str, context: str) -> str:
    """An image of the project, as compose.yaml builds it."""
    python = f"PYTHON_IMAGE={settings()['PYTHON_IMAGE']}"
    options = ("--quiet", "--build-arg", python, "--file", str(ROOT / folder / "Dockerfile"))
    return docker("build", *options, str(ROOT / context))


@pytest.fixture(scope="module")
def image() -> str:
    """flask-app's image."""
    return build("flask", ".")


# One worker of an app that does as it is asked.
FAULTY_APP = (
    f"--volume={ROOT}/tests/apps:/tests/apps:ro",
    "--env=GUNICORN_WORKERS=1",
    "--env=GUNICORN_PRELOAD_APP=true",
    "--env=WSGI_APP=faulty:app",
    "--env=PYTHONPATH=/tests/apps",
)


class Container:
    """A service in a container, started with these options of `docker run`."""

    def __init__(self, image: str, metrics_port: int, *options: str) -> None:
        self.name = f"stack-test-{uuid.uuid4().hex[:8]}"
        self._metrics_port = metrics_port
        docker("run", "--detach", "--name", self.name, *options, image)
        networks = json.loads(docker("inspect", self.name))[0]["NetworkSettings"]["Networks"]
        self._address = next(iter(networks.values()))["IPAddress"]

    def get(self, path: str, timeout: float = 10) -> None:
        requests.get(f"http://{self._address}:8000{path}", timeout=timeout)

    def metrics(self) -> dict[str, float]:
        """The metrics by name and labels as they are written."""
        url = f"http://{self._address}:{self._metrics_port}/metrics"
        response = requests.get(url, timeout=10)
        samples = re.findall(r"^([^#\s]\S*) (\S+)$", response.text, re.MULTILINE)
        return {name: float(value) for name, value in samples}


@contextlib.contextmanager
def container(image: str, metrics_port: int, *options: str) -> Iterator[Container]:
    running = Container(image, metrics_port, *options)
    try:
        wait_until(running.metrics, 60, "metrics")
        yield running
    finally:
        docker("rm", "--force", running.name)


def test_memory_limit_and_a_killed_worker_are_seen(image: str) -> None:
    with container(image, 9200, *FAULTY_APP, *MEMORY_LIMIT) as running:
        before = running.metrics()
        assert before["cgroup_memory_limit_bytes"] == 64 * MEBIBYTE
        assert 0 < before["cgroup_memory_working_set_bytes"] < 64 * MEBIBYTE
        assert before["cgroup_oom_kills_total"] == 0
        assert "cgroup_cpu_throttled_seconds_total" not in before
        with contextlib.suppress(requests.RequestException):  # its worker is killed
            running.get(f"/?allocate={64 * MEBIBYTE}")
        after = wait_until(
            lambda: (m := running.metrics())["cgroup_oom_kills_total"] and m, 30, "the kill"
        )
        assert after["cgroup_memory_working_set_bytes"] < 64 * MEBIBYTE
        wait_until(
            lambda: running.metrics()['gunicorn_worker_exits_total{reason="signal"}'] >= 1,
            30,
            "the worker's exit",
        )


def test_cpu_limit_and_time_spent_waiting_are_seen(image: str) -> None:
    with container(image, 9200, *FAULTY_APP, "--cpus=0.2") as running:
        before = wait_until(running.metrics, 60, "metrics")
        assert "cgroup_memory_limit_bytes" not in before
        throttled = "cgroup_cpu_throttled_seconds_total"

        # The machine decides how long the container waits, but it waits in any case.
        def waited() -> bool:
            running.get("/?compute=0.2", timeout=60)
            return running.metrics()[throttled] > before[throttled]

        wait_until(waited, 60, "time spent waiting for the CPU")


def test_the_access_exporter_exports_its_own_limits() -> None:
    with container(
        build("nginx/access_exporter", "nginx/access_exporter"), 9114, *MEMORY_LIMIT, "--cpus=0.2"
    ) as running:
        found = running.metrics()
        assert found["cgroup_memory_limit_bytes"] == 64 * MEBIBYTE
        assert 0 < found["cgroup_memory_working_set_bytes"] < 64 * MEBIBYTE
        assert found["cgroup_oom_kills_total"] == 0
        assert found["cgroup_cpu_throttled_seconds_total"] >= 0
