"""What one client can take from others: nginx with the project's configuration, without an app."""

import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from local.render import render
from local.settings import DEFAULT_PORTS, environment, settings
from nginx_access_exporter.line import parse
from tests.servers import nginx_command, running
from tests.stacks import free_port, wait_until

TOO_MANY = requests.codes.too_many_requests
# More than one worker of nginx held before worker_connections was raised.
HALF_SENT = 4500


class Nginx:
    """A running nginx."""

    def __init__(self, env: dict[str, str]) -> None:
        self._log = Path(env["NGINX_METRICS_LOG"])
        self.address = ("127.0.0.1", int(env["HTTP_PORT"]))
        self.url = "http://{}:{}".format(*self.address)

    def status(self, **headers: str) -> int:
        """Ask for a page of the app; without an app, the answer is 502 unless nginx refuses."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.get(self.url, headers=named, timeout=30).status_code

    def logged(self, status: int) -> list[str]:
        """Return the routes of the requests with this status."""
        requests_logged = map(parse, self._log.read_bytes().splitlines())
        return [each.route for each in requests_logged if each.status == str(status)]


@contextlib.contextmanager
def nginx(folder: Path, **given: str) -> Iterator[Nginx]:
    numbers = {name: str(free_port()) for name in DEFAULT_PORTS}
    env = environment(settings() | numbers | {"NGINX_WORKER_PROCESSES": "1"} | given, folder)
    render(env)
    started = Nginx(env)
    command = nginx_command(env, env["NGINX_RUN_DIR"])
    with running(command, f"{started.url}/health-check", 10, env=env):
        yield started


def test_by_default_no_client_is_limited(tmp_path: Path) -> None:
    with nginx(tmp_path) as running:
        assert {running.status() for _ in range(50)} == {requests.codes.bad_gateway}


def test_client_above_its_limit_gets_429_which_is_logged_and_others_do_not(tmp_path: Path) -> None:
    limits = {"NGINX_CLIENT_REQUESTS_PER_SECOND": "1", "NGINX_TRUSTED_PROXIES": "127.0.0.0/8"}
    with nginx(tmp_path, **limits) as running:
        statuses = {running.status(X_Forwarded_For="192.0.2.1") for _ in range(20)}
        assert statuses == {requests.codes.bad_gateway, TOO_MANY}
        assert running.status(X_Forwarded_For="192.0.2.2") == requests.codes.bad_gateway
        logged = wait_until(lambda: running.logged(TOO_MANY), 10, "the line in the log")
        assert set(logged) == {"none"}


def test_client_cannot_choose_its_address(tmp_path: Path) -> None:
    with nginx(tmp_path, NGINX_CLIENT_REQUESTS_PER_SECOND="1") as running:
        statuses = [running.status(X_Forwarded_For=f"192.0.2.{each}") for each in range(20)]
        assert TOO_MANY in statuses


def test_connections_of_a_client_are_limited(tmp_path: Path) -> None:
    with nginx(tmp_path, NGINX_CLIENT_CONNECTIONS="1") as running, half_sent_body(running):
        wait_until(lambda: running.status() == TOO_MANY, 10, "a second request to be refused")


@contextlib.contextmanager
def half_sent_body(running: Nginx) -> Iterator[None]:
    with socket.create_connection(running.address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
        yield


def test_thousands_of_half_sent_headers_do_not_stop_service(tmp_path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 2 * HALF_SENT:
        pytest.skip(f"this machine allows a process only {most} files")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * HALF_SENT), hard))
    try:
        with nginx(tmp_path) as running, contextlib.ExitStack() as clients:
            for _ in range(HALF_SENT):
                client = clients.enter_context(socket.create_connection(running.address, 30))
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
            assert requests.get(f"{running.url}/health-check", timeout=4).ok
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_health_check_fails_while_nginx_drains(tmp_path: Path) -> None:
    with nginx(tmp_path) as running:
        (draining,) = (path.with_name("draining") for path in tmp_path.rglob("nginx.pid"))
        for present, status in ((True, 503), (False, 200)):
            draining.touch() if present else draining.unlink()
            answer = requests.get(f"{running.url}/health-check", timeout=5)
            assert answer.status_code == status
            assert running.status() == requests.codes.bad_gateway  # others get an answer all along
