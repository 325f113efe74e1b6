"""What clients see through nginx."""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

import pytest
import requests
from urllib3.util import SKIP_HEADER

from tests.stacks import Stack


def test_hello_world(stack: Stack) -> None:
    response = requests.get(stack.http, timeout=10)
    assert (response.status_code, response.text) == (200, "Hello World!")


def test_every_response_carries_a_request_id_of_its_own(stack: Stack) -> None:
    paths = ("/", "/cache-me", "/info", "/health-check", "/no-such-page")
    ids = [requests.get(stack.http + path, timeout=10).headers["X-Request-ID"] for path in paths]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert len(set(ids)) == len(paths)


def test_flask_gets_the_request_id_that_the_client_sees(stack: Stack) -> None:
    response = requests.get(f"{stack.http}/info", headers={"X-Request-ID": "forged"}, timeout=10)
    assert response.json()["request_id"] == response.headers["X-Request-ID"]


def test_health_checks_of_nginx_and_flask(stack: Stack) -> None:
    for path in ("/health-check", "/flask-health-check"):
        response = requests.get(stack.http + path, timeout=10)
        assert (response.status_code, response.text) == (200, "success")


def test_info_without_user_agent(stack: Stack) -> None:
    silent = {"User-Agent": SKIP_HEADER}  # otherwise requests and urllib3 send their names
    response = requests.get(f"{stack.http}/info", headers=silent, timeout=10)
    assert response.status_code == 200
    assert response.json()["user-agent"] is None


def test_flask_gets_the_host_and_the_port_that_the_client_used(stack: Stack) -> None:
    asked = requests.get(f"{stack.http}/info", timeout=10).json()
    assert asked["host"] == urlsplit(stack.http).netloc
    named = requests.get(f"{stack.http}/info", headers={"Host": "Example.com"}, timeout=10).json()
    assert named["host"] == "example.com"


@pytest.mark.parametrize(
    "header",
    [
        *("X-Forwarded-Proto: https", "X-Forwarded-Ssl: on", "X-Forwarded-Protocol: ssl"),
        *("X-Forwarded-Port: 1", "X-Forwarded-Prefix: /a", "Forwarded: host=a;proto=https"),
    ],
)
def test_a_clients_proxy_headers_do_not_reach_flask(stack: Stack, header: str) -> None:
    name, _, value = header.partition(": ")
    url = f"{stack.http}/info?show={name}"
    response = requests.get(url, headers={name: value}, timeout=10)
    assert response.status_code == 200
    assert response.headers.get("X-Shown", "") != value


def test_a_client_cannot_forge_its_address(stack: Stack) -> None:
    honest = requests.get(f"{stack.http}/info", timeout=10).json()
    forged = {"X-Real-IP": "203.0.113.7", "X-Forwarded-For": "203.0.113.7, 198.51.100.1"}
    answer = requests.get(f"{stack.http}/info", headers=forged, timeout=10).json()
    assert answer["connecting_ip"] == honest["connecting_ip"]
    assert answer["proxy_ip"] == honest["proxy_ip"]
    assert "203.0.113.7" not in str(answer)


@pytest.mark.parametrize("path", ["/metrics", "/stub_status", "/metrics/", "//metrics"])
def test_telemetry_is_not_reachable_through_the_public_port(stack: Stack, path: str) -> None:
    # A raw request, because a client library would normalize the path.
    address = urlsplit(stack.http)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert answer.split()[1] == "404"
    assert "# TYPE" not in answer
    assert "Active connections" not in answer


def test_the_route_header_does_not_reach_clients(stack: Stack) -> None:
    assert requests.get(stack.flask, timeout=10).headers["X-Route"] == "/"
    for path in ("/", "/cache-me", "/cache-me", "/no-such-page"):
        assert "X-Route" not in requests.get(stack.http + path, timeout=10).headers


def test_unknown_paths_are_404(stack: Stack) -> None:
    assert requests.get(f"{stack.http}/no-such-page", timeout=10).status_code == 404


def test_the_server_header_has_no_version(stack: Stack) -> None:
    assert requests.get(stack.http, timeout=10).headers["Server"] == "nginx"
