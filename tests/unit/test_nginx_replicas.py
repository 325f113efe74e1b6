"""What a replica that hangs, and a request that kills workers, do to others: nginx, no app.

The nginx of this machine has the project's configuration, with several addresses instead of one.
"""

from __future__ import annotations

import contextlib
import re
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from local.render import render
from local.settings import BIN, DEFAULT_PORTS, environment, settings
from tests.stacks import free_port, wait_until

READ_TIMEOUT = 1  # seconds, instead of 65
PROBED_EVERY = 5  # seconds: fail_timeout


class Replica(socketserver.ThreadingTCPServer):
    """Answers any request, unless it hangs; for /deadly it closes the connection instead."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hangs = False
        self.targets: list[str] = []
        self.released = threading.Event()

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.server_address)


class _Handler(socketserver.StreamRequestHandler):
    server: Replica

    def handle(self) -> None:
        target = self.rfile.readline().split()[1].decode()
        for _ in iter(self.rfile.readline, b"\r\n"):
            pass
        self.server.targets.append(target)
        if self.server.hangs:
            self.server.released.wait(60)
        elif target != "/deadly":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")


class Proxy:
    """A running nginx before its replicas."""

    def __init__(self, url: str, replicas: list[Replica]) -> None:
        self.url = url
        self.replicas = replicas

    def status(self, path: str = "/") -> int:
        return requests.get(self.url + path, timeout=30).status_code


@contextlib.contextmanager
def proxy(folder: Path, count: int, read_timeout: int = READ_TIMEOUT) -> Iterator[Proxy]:
    """Run nginx before so many replicas."""
    with contextlib.ExitStack() as running:
        replicas = [running.enter_context(Replica()) for _ in range(count)]
        for replica in replicas:
            threading.Thread(target=replica.serve_forever, daemon=True).start()
            running.callback(replica.shutdown)
            running.callback(replica.released.set)
        numbers = {name: str(free_port()) for name in DEFAULT_PORTS}
        given = {"NGINX_WORKER_PROCESSES": "2", "FLASK_APP_TIMEOUT": str(read_timeout)}
        env = environment(settings() | numbers | given, folder)
        render(env)
        run = Path(env["NGINX_RUN_DIR"])
        _name_replicas(run / "conf.d" / "flask-app.conf", env["FLASK_APP_SERVER"], replicas)
        command = [BIN / "nginx", "-e", "stderr", "-p", run, "-c", run / "nginx.conf"]
        nginx = subprocess.Popen(
            [*command, "-g", f"daemon off; {env['NGINX_USER_DIRECTIVE']}"], env=env
        )
        running.callback(nginx.wait)
        running.callback(nginx.terminate)
        url = f"http://127.0.0.1:{env['HTTP_PORT']}"
        wait_until(lambda: requests.get(f"{url}/health-check", timeout=5).ok, 10, "nginx")
        yield Proxy(url, replicas)


def _name_replicas(config: Path, server: str, replicas: list[Replica]) -> None:
    """Repeat each `server` of the upstream for every replica, as `resolve` does."""

    def repeated(line: re.Match[str]) -> str:
        return "\n".join(line[0].replace(server, replica.address) for replica in replicas)

    text, found = re.subn(rf" server {server} .*;", repeated, config.read_text())
    assert found
    config.write_text(text)


def ask_until(running: Proxy, end: float, statuses: list[int]) -> None:
    while time.monotonic() < end:
        statuses.append(running.status())


def test_replica_that_hangs_gets_one_request_every_few_seconds(tmp_path: Path) -> None:
    with proxy(tmp_path, 3) as running:
        hung = running.replicas[0]
        hung.hangs = True
        with ThreadPoolExecutor(4) as clients:
            statuses: list[int] = []
            seconds = 2 * PROBED_EVERY + 4 * READ_TIMEOUT
            end = time.monotonic() + seconds
            for _ in range(4):
                clients.submit(ask_until, running, end, statuses)
        # At first as many as the others have; then, after three failures, the probes.
        assert len(hung.targets) <= 4 + 3 + 3
        assert len(statuses) > 50 * len(hung.targets)


def test_replica_that_hangs_keeps_no_client_but_its_share(tmp_path: Path) -> None:
    """Of four clients, two are always left for the others."""
    with proxy(tmp_path, 3, read_timeout=30) as running:
        hung = running.replicas[0]
        hung.hangs = True
        statuses: list[int] = []
        with ThreadPoolExecutor(4) as clients:
            for _ in range(4):
                clients.submit(ask_until, running, time.monotonic() + 3, statuses)
            wait_until(lambda: len(statuses) > 100, 20, "answers")
            assert len(hung.targets) <= 2
            hung.released.set()


def test_replica_that_works_again_gets_requests_again(tmp_path: Path) -> None:
    with proxy(tmp_path, 3) as running, ThreadPoolExecutor(4) as clients:
        hung = running.replicas[0]
        hung.hangs = True
        wait_until(
            lambda: list(clients.map(running.status, ["/"] * 8)) and len(hung.targets) >= 3,
            20,
            "three requests to fail",
        )
        hung.hangs = False
        before = len(hung.targets)
        wait_until(lambda: running.status() and len(hung.targets) > before + 20, 20, "requests")


@pytest.mark.parametrize("count", [1, 3])
def test_request_that_kills_workers_of_all_replicas_fails_no_other(
    tmp_path: Path, count: int
) -> None:
    with proxy(tmp_path, count) as running:
        for _ in range(20):
            assert running.status("/deadly") == requests.codes.bad_gateway
            assert running.status() == requests.codes.ok


@pytest.mark.parametrize(("count", "most"), [(1, 2), (3, 3)])
def test_request_that_kills_workers_reaches_few(tmp_path: Path, count: int, most: int) -> None:
    with proxy(tmp_path, count) as running:
        running.status("/deadly")
        assert sum(len(replica.targets) for replica in running.replicas) == most
