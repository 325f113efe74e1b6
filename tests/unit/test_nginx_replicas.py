"""What a replica that hangs, and a request that kills workers, do to others: nginx, no app."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.replicas import Proxy, proxy, serving
from tests.stacks import wait_until

READ_TIMEOUT = 1  # seconds, instead of 65
PROBED_EVERY = 5  # seconds: fail_timeout


@contextlib.contextmanager
def before(count: int, folder: Path, read_timeout: int = READ_TIMEOUT) -> Iterator[Proxy]:
    """Run nginx before so many replicas."""
    with (
        serving(count) as replicas,
        proxy(folder, replicas, FLASK_APP_TIMEOUT=str(read_timeout)) as running,
    ):
        yield running


def ask_until(running: Proxy, ended: Callable[[], bool], statuses: list[int]) -> None:
    while not ended():
        statuses.append(running.status())


def test_replica_that_hangs_gets_one_request_every_few_seconds(tmp_path: Path) -> None:
    with before(3, tmp_path) as running:
        hung = running.replicas[0]
        hung.hangs = True
        with ThreadPoolExecutor(4) as clients:
            statuses: list[int] = []
            seconds = 2 * PROBED_EVERY + 4 * READ_TIMEOUT
            end = time.monotonic() + seconds
            for _ in range(4):
                clients.submit(ask_until, running, lambda: time.monotonic() > end, statuses)
        # At first as many as the others have; then, after three failures, the probes.
        assert len(hung.targets) <= 4 + 3 + 3
        assert len(statuses) > 50 * len(hung.targets)


def test_replica_that_hangs_keeps_no_client_but_its_share(tmp_path: Path) -> None:
    """Of four clients, two are always left for the others."""
    with before(3, tmp_path, read_timeout=30) as running:
        hung = running.replicas[0]
        hung.hangs = True
        statuses: list[int] = []

        def enough() -> bool:
            return len(statuses) > 100

        with ThreadPoolExecutor(4) as clients:
            for _ in range(4):
                clients.submit(ask_until, running, enough, statuses)
            wait_until(enough, 20, "answers")
            assert len(hung.targets) <= 2
            hung.released.set()


def test_replica_that_works_again_gets_requests_again(tmp_path: Path) -> None:
    with before(3, tmp_path) as running, ThreadPoolExecutor(4) as clients:
        hung = running.replicas[0]
        hung.hangs = True
        wait_until(
            lambda: list(clients.map(running.status, ["/"] * 8)) and len(hung.targets) >= 3,
            20,
            "three requests to fail",
        )
        hung.hangs = False
        seen = len(hung.targets)
        wait_until(lambda: running.status() and len(hung.targets) > seen + 20, 20, "requests")


@pytest.mark.parametrize("count", [1, 3])
def test_request_that_kills_workers_of_all_replicas_fails_no_other(
    tmp_path: Path, count: int
) -> None:
    with before(count, tmp_path) as running:
        for _ in range(20):
            assert running.status("/deadly") == requests.codes.bad_gateway
            assert running.status() == requests.codes.ok


@pytest.mark.parametrize(("count", "most"), [(1, 2), (3, 3)])
def test_request_that_kills_workers_reaches_few(tmp_path: Path, count: int, most: int) -> None:
    with before(count, tmp_path) as running:
        running.status("/deadly")
        assert sum(len(replica.targets) for replica in running.replicas) == most
