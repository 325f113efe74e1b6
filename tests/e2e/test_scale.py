"""Replicas come and go in Compose; clients do not notice, Prometheus does."""

from __future__ import annotations

import threading

import pytest
import requests

from tests.stacks import ComposeStack, Stack, wait_until


class Client(threading.Thread):
    """Asks for `/` until it is stopped, and keeps what went wrong."""

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


def test_scaling_to_three_and_back_fails_no_request(stack: Stack) -> None:
    if not isinstance(stack, ComposeStack):
        pytest.skip("local processes have no replicas")

    def scale(replicas: int) -> None:
        arguments = ("--no-deps", "--no-recreate", "--wait", "--scale", f"flask-app={replicas}")
        stack.compose("up", "--detach", *arguments, "flask-app")

    def replicas_seen() -> tuple[int, int]:
        targets = stack.query('count(up{job="flask-app"})')[0]["value"]
        up = stack.query('sum(up{job="flask-app"})')[0]["value"]
        return int(targets), int(up)

    def replicas_asked() -> int:
        answering = "sum by (instance) (rate(flask_http_request_total[15s])) > 0"
        return len(stack.query(answering))

    clients = [Client(stack.http) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        scale(3)
        wait_until(lambda: replicas_seen() == (3, 3), 30, "Prometheus to see 3 replicas")
        wait_until(lambda: replicas_asked() == 3, 30, "nginx to ask all 3 replicas")
        scale(1)
        wait_until(lambda: replicas_seen() == (1, 1), 30, "Prometheus to see 1 replica")
        answers = sum(client.answers for client in clients)
        wait_until(
            lambda: sum(client.answers for client in clients) > answers + 100, 20, "more answers"
        )
    finally:
        for client in clients:
            client.stop()
        if replicas_seen()[0] != 1:
            scale(1)
    assert [failure for client in clients for failure in client.failures] == []
