"""A cache that cannot be written: nginx would fail every request whose answer it should store."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

import pytest
import requests

from tests.e2e.faults import EMPTY, FULL, PUT_BACK, READ_ONLY, REPLACED, WRITABLE, beside_cache
from tests.stacks import SMALL_DISKS, Stack, launch, wait_until

NOTICED_WITHIN = 10  # seconds
ALERTED_WITHIN = 120
ROOT_USER = os.geteuid() == 0
FAULTS = {
    "replaced": (REPLACED, PUT_BACK),
    "read-only": (READ_ONLY, WRITABLE),
    "full": (FULL, EMPTY),
}


@pytest.fixture(scope="module")
def stack(kind: str) -> Iterator[Stack]:
    with launch(kind, None, SMALL_DISKS) as running:
        yield running


@contextlib.contextmanager
def broken(stack: Stack, fault: str) -> Iterator[None]:
    """A cache that cannot be written, for as long as the context lasts."""
    breaks, repairs = (scripts[stack.kind] for scripts in FAULTS[fault])
    if stack.kind == "local" and fault == "full" and not ROOT_USER:
        pytest.skip("only root can mount a small file system")
    if stack.kind == "local" and fault == "read-only" and ROOT_USER:
        pytest.skip("root may write to any folder")
    beside_cache(stack, breaks)
    try:
        yield
    finally:
        beside_cache(stack, repairs)


def ask(stack: Stack) -> tuple[int, str | None]:
    """The status and the cache status of a request for a new entry."""
    answer = requests.get(f"{stack.http}/cache-me?entry={uuid.uuid4().hex}", timeout=20)
    return answer.status_code, answer.headers.get("X-Cache-Status")


def wait_for_cache(stack: Stack) -> None:
    wait_until(lambda: ask(stack) == (200, "MISS"), NOTICED_WITHIN, "the cache to be used again")


@pytest.mark.parametrize("fault", FAULTS)
def test_requests_soon_succeed_without_the_cache(stack: Stack, fault: str) -> None:
    wait_for_cache(stack)
    with broken(stack, fault):
        wait_until(lambda: ask(stack) == (200, None), NOTICED_WITHIN, "an answer")
        assert {ask(stack) for _ in range(50)} == {(200, None)}
    wait_for_cache(stack)
    assert {ask(stack) for _ in range(50)} == {(200, "MISS")}


def test_a_removed_folder_is_soon_used_again(stack: Stack) -> None:
    wait_for_cache(stack)
    beside_cache(stack, "rm -r responses")
    wait_for_cache(stack)
    assert {ask(stack) for _ in range(50)} == {(200, "MISS")}


def test_status_metric_and_alert_say_that_the_cache_cannot_be_written(stack: Stack) -> None:
    firing = 'ALERTS{alertname="CacheNotWritable", alertstate="firing"}'

    def writable() -> float:
        return stack.total("nginx-access-exporter", "nginx_cache_writable", zone="responses")

    wait_until(lambda: writable() == 1, NOTICED_WITHIN, "the cache to be watched")
    with broken(stack, "replaced"):
        wait_until(lambda: writable() == 0, NOTICED_WITHIN, "the metric")
        status = stack.command("status")
        assert status.returncode == 1
        assert "nginx does not use its cache" in status.stdout + status.stderr
        wait_until(lambda: stack.query(firing), ALERTED_WITHIN, "the alert")
    wait_until(lambda: not stack.query(firing), ALERTED_WITHIN, "the end of the alert")
    assert "nginx does not use its cache" not in stack.command("status").stderr
