"""Replicas in Compose that come, go, hang and die: others' requests do not fail or wait."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from tests.load import Load, busy_machine
from tests.stacks import ComposeStack, Stack, wait_until


class Client(threading.Thread):
    """Requests `/` until it is stopped, and records failures."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.answers = 0
        self.failures: list[str] = []
        self._stopped = threading.Event()

    def run(self) -> None:
        with requests.Session() as session:
            while not self._stopped.wait(0.01):
                try:
                    response = session.get(self.url, timeout=20)
                    self.answers += 1
                    if response.status_code != 200:
                        self.failures.append(f"status {response.status_code}")
                except requests.RequestException as error:
                    self.failures.append(repr(error))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@contextlib.contextmanager
def clients(stack: Stack, count: int) -> Iterator[list[Client]]:
    """Run `count` clients; at the end, assert that none had a failure."""
    asking = [Client(stack.http) for _ in range(count)]
    for client in asking:
        client.start()
    try:
        yield asking
    finally:
        for client in asking:
            client.stop()
    assert [failure for client in asking for failure in client.failures] == []


def answers(asking: list[Client]) -> int:
    return sum(client.answers for client in asking)


@pytest.fixture
def scalable(stack: Stack) -> Iterator[ComposeStack]:
    """The shared stack; afterwards it has one replica again."""
    if not isinstance(stack, ComposeStack):
        pytest.skip("local processes have no replicas")
    yield stack
    stack.compose("rm", "--force", "flask-app")  # those that a test killed
    stack.scale(1)
    wait_until(lambda: replicas_seen(stack) == (1, 1), 60, "Prometheus to see 1 replica")


def replicas_seen(stack: Stack) -> tuple[int, int]:
    """How many replicas Prometheus knows, and how many of them answer it."""
    targets = stack.query('count(up{job="flask-app"})')[0]["value"]
    up = stack.query('sum(up{job="flask-app"})')[0]["value"]
    return int(targets), int(up)


def replicas_asked(stack: Stack) -> int:
    """How many replicas have answered requests lately."""
    return len(stack.query("sum by (instance) (rate(flask_http_request_total[15s])) > 0"))


def test_scaling_to_three_and_back_on_a_busy_machine_fails_no_request(
    scalable: ComposeStack,
) -> None:
    with clients(scalable, 4) as asking, busy_machine():
        scalable.scale(3)
        wait_until(lambda: replicas_seen(scalable) == (3, 3), 60, "Prometheus to see 3 replicas")
        wait_until(lambda: replicas_asked(scalable) == 3, 60, "nginx to ask all 3 replicas")
        scalable.scale(1)
        wait_until(lambda: replicas_seen(scalable) == (1, 1), 60, "Prometheus to see 1 replica")
        before = answers(asking)
        wait_until(lambda: answers(asking) > before + 100, 60, "more answers")


def test_replicas_that_vanish_one_after_another_fail_no_request(scalable: ComposeStack) -> None:
    """nginx waits 2 s for a replica that is gone, and may then choose the next one to vanish."""
    scalable.scale(6)
    _, *others = scalable.containers("flask-app")
    with clients(scalable, 20) as asking:
        wait_until(lambda: replicas_asked(scalable) == 6, 60, "nginx to ask all 6 replicas")
        for replica in others:
            scalable.kill_container(replica)
            time.sleep(1)  # with the kill about 2 s: the time for which nginx caches DNS answers
        before = answers(asking)
        wait_until(lambda: answers(asking) > before + 100, 60, "more answers")


def test_replica_that_hangs_holds_few_requests(scalable: ComposeStack) -> None:
    scalable.scale(3)
    wait_until(lambda: replicas_seen(scalable) == (3, 3), 60, "Prometheus to see 3 replicas")
    with Load(f"{scalable.http}/?size=10", 40) as load:
        wait_until(lambda: len(load.answers) > 80, 30, "load")
        with scalable.paused(scalable.containers("flask-app")[-1]):
            hung = time.monotonic()
            wait_until(
                lambda: sum(each.began > hung for each in load.answers) > 400, 60, "400 answers"
            )
            mended = time.monotonic()
    held = [each for each in load.answers if each.began < mended - 1 and each.ended > mended]
    assert set(load.failed) <= set(held)
    assert len(held) <= 20  # with equal shares it is 133


def test_request_that_kills_workers_kills_few_and_fails_few_others(scalable: ComposeStack) -> None:
    scalable.scale(3)
    wait_until(lambda: replicas_seen(scalable) == (3, 3), 60, "Prometheus to see 3 replicas")
    killed = scalable.workers_killed()
    with Load(f"{scalable.http}/?size=10", 20) as load:
        for _ in range(4):
            assert requests.get(f"{scalable.http}/?die=9", timeout=20).status_code in (502, 503)
            seen = len(load.answers)
            wait_until(lambda seen=seen: len(load.answers) > seen + 20, 30, "more answers")
    assert scalable.workers_killed() - killed <= 4 * 6  # a replica once, and as a backup once
    # A killed worker takes the requests with it that it was working on.
    assert len(load.failed) < len(load.answers) / 4
