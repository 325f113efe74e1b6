"""A cache that cannot be written: nginx would fail every request whose answer it should store."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

import pytest
import requests

from tests.stacks import KINDS, ComposeStack, Stack, run, wait_until

NOTICED_WITHIN = 10  # seconds
ALERTED_WITHIN = 120
ROOT_USER = os.geteuid() == 0
# With Docker the cache is a file system of its own, small enough to fill.
SMALL_DISK = """
volumes:
  nginx-cache:
    driver_opts: {type: tmpfs, device: tmpfs, o: "size=48m,uid=101,gid=101,mode=0750"}
"""
# What breaks the cache and what repairs it, in the folder NGINX_CACHE_DIR.
FAULTS = {
    "replaced": ("mv responses aside && touch responses", "rm responses && mv aside responses"),
    "read-only": ("chmod 500 responses", "chmod 700 responses"),
    "full": ("dd if=/dev/zero of=filler bs=1M 2>/dev/null; test -s filler", "rm filler"),
}
SMALL_MOUNT = ("mount -t tmpfs -o size=512k tmpfs responses", "umount responses")


@pytest.fixture(scope="module")
def stack(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = KINDS[kind]({})
    if isinstance(stack, ComposeStack):
        override = tmp_path_factory.mktemp("small-disk") / "compose.yaml"
        override.write_text(SMALL_DISK)
        stack.files.append(override)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


def beside_nginx(stack: Stack, script: str) -> None:
    """Run a shell script in the folder of nginx's caches, as the user that nginx runs as."""
    script = f'cd "$NGINX_CACHE_DIR" && {script}'
    if isinstance(stack, ComposeStack):
        stack.compose("exec", "-T", "nginx-proxy", "sh", "-c", script)
    else:
        folder = str(stack.run / "nginx" / "cache")
        run(["sh", "-c", script], os.environ | {"NGINX_CACHE_DIR": folder})


@contextlib.contextmanager
def broken(stack: Stack, fault: str) -> Iterator[None]:
    """A cache that cannot be written, for as long as the context lasts."""
    breaks, repairs = FAULTS[fault]
    if stack.kind == "local" and fault == "full":
        if not ROOT_USER:
            pytest.skip("only root can mount a small file system")
        breaks, repairs = SMALL_MOUNT
    if stack.kind == "local" and fault == "read-only" and ROOT_USER:
        pytest.skip("root may write to any folder")
    beside_nginx(stack, breaks)
    try:
        yield
    finally:
        beside_nginx(stack, repairs)


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
    beside_nginx(stack, "rm -r responses")
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
