"""The stack in a real Docker Swarm of three nodes: deployed, updated, grown, and with a node lost.

Requests are counted, and those that fail. Rows of the table in docs/swarm.md are printed at the end
of the run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
import requests

from local.settings import ROOT, settings
from tests.load import Load
from tests.stacks import require_engine, run, settle, wait_until
from tests.swarms import NAME, NODE_IMAGE, NODES, Swarm, swarm_of_three

RATE = 10  # requests a second for each node
WITHIN = 240.0  # seconds; a node may have to pull images first
COUNTED = "nginx_route_requests_total"
PATH = "/?size=10"
JOBS = ("nginx-proxy", "nginx-exporter", "nginx-access-exporter")

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def swarm() -> Iterator[Swarm]:
    """A swarm on which the stack was deployed once, with one nginx and two replicas of the app."""
    require_engine("swarm")
    inspect = ["docker", "image", "inspect", NODE_IMAGE]
    if subprocess.run(inspect, capture_output=True, check=False).returncode:
        run([".ci/swarm-node"])
    with swarm_of_three() as running:
        done = running.deploy()
        assert done.returncode == 0, done.stdout + done.stderr
        yield running


def targets(swarm: Swarm) -> dict[str, int]:
    """How many targets of each job are up; one that is down counts as -100."""
    found: dict[str, int] = {}
    for sample in swarm.query("up"):
        job = sample["metric"]["job"]
        found[job] = found.get(job, 0) + (1 if sample["value"] else -100)
    return found


def expected(nginx: int, flask: int) -> dict[str, int]:
    units = dict.fromkeys(JOBS, nginx)
    return units | {"flask-app": flask, "prometheus": 1, "alertmanager": 1}


def wait_for_targets(swarm: Swarm, nginx: int, flask: int) -> None:
    wanted = expected(nginx, flask)
    wait_until(lambda: targets(swarm) == wanted, WITHIN, f"targets {wanted}")


def run_nginx_everywhere(swarm: Swarm) -> None:
    for number in NODES:
        swarm.docker("node", "update", "--label-add=nginx=true", f"node-{number}")
    wait_for_targets(swarm, nginx=3, flask=2)


def instances(swarm: Swarm) -> dict[str, float]:
    """What each node's nginx has counted, by its exporter's address."""
    found = swarm.query(f"sum by (instance) ({COUNTED})")
    return {sample["metric"]["instance"]: sample["value"] for sample in found}


def counts(swarm: Swarm) -> dict[str, float]:
    """The same, once it no longer changes."""
    # Longer than from one scrape to the next.
    return settle(lambda: instances(swarm), 7, 60, "the counts")


@contextlib.contextmanager
def load_on(swarm: Swarm, *nodes: int) -> Iterator[list[Load]]:
    """Send requests to these nodes; what each node's nginx counts is the clients' own count."""
    loads = [Load(f"http://{swarm.address(number)}:80{PATH}", RATE) for number in nodes]
    with contextlib.ExitStack() as running:
        for load in loads:
            running.enter_context(load)
        yield loads


def calm(loads: list[Load], seconds: float = 3.0) -> Callable[[], bool]:
    """Whether all requests of the last seconds have succeeded."""

    def is_calm() -> bool:
        since = time.monotonic() - seconds
        latest = [each for load in loads for each in load.answers if each.began > since]
        return len(latest) > RATE and not any(each.failed for each in latest)

    began = time.monotonic()
    return lambda: time.monotonic() > began + seconds and is_calm()


def failures(loads: list[Load]) -> str:
    """The failed requests, and the seconds from the first of them to the end of the last one."""
    failed = [each for load in loads for each in load.failed]
    total = sum(len(load.answers) for load in loads)
    seconds = max((each.ended for each in failed), default=0) - min(
        (each.began for each in failed), default=0
    )
    return f"{len(failed)} of {total} | {seconds:.1f} s"


def row(record: Record, what: str, result: str) -> None:
    record("row", f"| {what} | {result} |")


def test_every_target_is_up_and_only_nginx_is_published(swarm: Swarm) -> None:
    wait_for_targets(swarm, nginx=1, flask=2)
    assert swarm.query('sum(nginx_up{job="nginx-exporter"})')[0]["value"] == 1
    assert requests.get(f"http://{swarm.address(1)}/", timeout=10).text == "Hello World!"
    for number in NODES:
        for port in (8000, 8081, 9090, 9093, 9113, 9114, 9200, 3000):
            with socket.socket() as probe:
                assert probe.connect_ex((swarm.address(number), port)) != 0


def test_consoles_are_reached_on_the_managers_loopback(swarm: Swarm) -> None:
    command = [ROOT / "stack", "consoles"]
    serving = subprocess.Popen(command, env=os.environ | swarm.settings, stdout=subprocess.PIPE)
    try:
        for port in (9090, 9093):
            ask = f"GET /-/ready HTTP/1.0\\r\\nHost: localhost:{port}\\r\\n\\r\\n"
            script = f"exec 3<>/dev/tcp/127.0.0.1/{port} && printf '{ask}' >&3 && cat <&3"
            wait_until(lambda script=script: "200 OK" in swarm.on(1, script), 30, f"port {port}")
            with socket.socket() as probe:
                assert probe.connect_ex((swarm.address(1), port)) != 0
    finally:
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=30)
    image = f"--filter=ancestor={settings()['NGINX_IMAGE']}"
    assert swarm.docker("ps", "--all", "--quiet", image) == ""


def test_a_deployment_without_a_change_restarts_nothing(swarm: Swarm) -> None:
    services = ("flask-app", "nginx-proxy", "nginx-access-exporter", "prometheus", "alertmanager")
    before = {service: swarm.tasks(service) for service in services}
    assert swarm.deploy().returncode == 0
    assert {service: swarm.tasks(service) for service in services} == before


def test_a_new_version_of_the_app_fails_no_request(swarm: Swarm, record_property: Record) -> None:
    before, old = counts(swarm), swarm.tasks("flask-app")
    with load_on(swarm, 1) as loads:
        done = swarm.deploy(APP_VERSION="2")
        assert done.returncode == 0, done.stdout + done.stderr
    assert not swarm.tasks("flask-app") & old
    assert [each for load in loads for each in load.failed] == []
    (instance,) = before
    assert counts(swarm)[instance] - before[instance] == len(loads[0].answers)
    replicas = 'count(flask_app_info{version="2"})'
    wait_until(
        lambda: [each["value"] for each in swarm.query(replicas)] == [2], WITHIN, "the new version"
    )
    row(record_property, "a new version of flask-app", failures(loads))


def test_a_bad_version_is_rolled_back_and_an_alert_says_so(
    swarm: Swarm, record_property: Record
) -> None:
    before = counts(swarm)
    with load_on(swarm, 1) as loads:
        done = swarm.deploy(WSGI_APP="unchecked:app")
    assert done.returncode == 1
    assert "flask-app: the new version failed and was rolled back" in done.stdout
    assert [each for load in loads for each in load.failed] == []
    assert sum(counts(swarm).values()) - sum(before.values()) == len(loads[0].answers)
    alerts = [alert["labels"] for alert in swarm.alerts()]
    assert {
        "alertname": "DeployRolledBack",
        "service": f"{NAME}_flask-app",
        "severity": "ticket",
    } in alerts
    wait_for_targets(swarm, nginx=1, flask=2)
    row(record_property, "a bad version of flask-app", failures(loads))


def test_labels_bring_nginx_to_three_nodes(swarm: Swarm) -> None:
    run_nginx_everywhere(swarm)
    assert swarm.query("sum(nginx_up)")[0]["value"] == 3
    before = sorted(counts(swarm).values())
    sent = {1: 10, 2: 20, 3: 40}
    for number, times in sent.items():
        for _ in range(times):
            requests.get(f"http://{swarm.address(number)}{PATH}", timeout=10)
    after = counts(swarm)
    # The new ones began at 0, and each exporter has what its own node's nginx answered.
    assert sorted(after.values())[:2] == [20, 40]
    assert sum(after.values()) - sum(before) == 70


def test_six_replicas_and_two_again_fail_no_request(swarm: Swarm, record_property: Record) -> None:
    run_nginx_everywhere(swarm)
    with load_on(swarm, *NODES) as loads:
        assert swarm.deploy(FLASK_APP_REPLICAS="6").returncode == 0
        wait_for_targets(swarm, nginx=3, flask=6)
        assert swarm.deploy(FLASK_APP_REPLICAS="2").returncode == 0
        wait_for_targets(swarm, nginx=3, flask=2)
    assert [each for load in loads for each in load.failed] == []
    row(record_property, "flask-app 2, 6 and 2 replicas", failures(loads))


def test_one_node_after_the_other_gets_a_new_nginx(swarm: Swarm, record_property: Record) -> None:
    run_nginx_everywhere(swarm)
    with load_on(swarm, *NODES) as loads:
        assert swarm.deploy(NGINX_CACHE_TTL="31s").returncode == 0
        wait_until(calm(loads), WITHIN, "an answer to every request")
    spans = sorted([each.began for each in load.failed] for load in loads)
    assert all(spans)
    # One node at a time: a balancer before them has always two that answer.
    assert all(max(first) < min(second) for first, second in itertools.pairwise(spans))
    for load in loads:
        row(record_property, "nginx is replaced, one node's clients", failures([load]))


def test_a_killed_node_is_made_up_for(swarm: Swarm, record_property: Record) -> None:
    run_nginx_everywhere(swarm)
    before = counts(swarm)
    with load_on(swarm, 1, 2) as loads:
        swarm.kill(3)
        killed = time.monotonic()
        wait_until(lambda: targets(swarm) == expected(2, 2), WITHIN, "two nodes with everything")
        row(record_property, "seconds to two healthy replicas", f"{time.monotonic() - killed:.0f}")
        wait_until(calm(loads), WITHIN, "an answer to every request")
        lost, surviving = failures(loads), instances(swarm).keys()
        swarm.start(3)
        wait_for_targets(swarm, nginx=3, flask=2)
        wait_until(calm(loads), WITHIN, "an answer to every request")
    row(record_property, "a node is killed, the others' clients", lost)
    row(record_property, "the same, and it starts again", failures(loads))
    after = counts(swarm)
    grown = sum(after[each] - before.get(each, 0) for each in surviving)
    assert grown == sum(len(load.answers) for load in loads)
