"""Whose X-Forwarded-* headers nginx trusts: a real nginx with the project's templates."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from local.render import render
from local.settings import environment, settings
from tests.servers import nginx_command, running
from tests.stacks import free_port

CLIENT = "203.0.113.9"
FROM_PROXY = {"X-Forwarded-For": f"198.51.100.1, {CLIENT}", "X-Forwarded-Proto": "https"}


class Echo(BaseHTTPRequestHandler):
    """Answers with the client's address and the scheme that nginx passes on."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        names = ("X-Real-IP", "X-Forwarded-For", "X-Forwarded-Proto")
        body = " ".join(self.headers.get(name, "-") for name in names).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    """The port of what stands in for Flask."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("proxies", "headers", "passed_on"),
    [
        ("127.0.0.1 192.0.2.0/24", FROM_PROXY, f"{CLIENT} {CLIENT} https"),
        # A client that is no proxy sends the same.
        ("", FROM_PROXY, "127.0.0.1 127.0.0.1 http"),
        ("192.0.2.0/24", FROM_PROXY, "127.0.0.1 127.0.0.1 http"),
        # What a client sends through the proxy stands before what the proxy adds.
        ("127.0.0.1 198.51.100.0/24", FROM_PROXY, f"{CLIENT} {CLIENT} https"),
        ("127.0.0.1", FROM_PROXY | {"X-Forwarded-Proto": "gopher"}, f"{CLIENT} {CLIENT} http"),
        ("127.0.0.1", FROM_PROXY | {"X-Forwarded-Proto": "http"}, f"{CLIENT} {CLIENT} http"),
        ("127.0.0.1", {}, "127.0.0.1 127.0.0.1 http"),
    ],
)
def test_only_a_trusted_proxy_names_the_client_and_the_scheme(
    proxies: str, headers: dict[str, str], passed_on: str, upstream: int, tmp_path: Path
) -> None:
    chosen = {"HTTP_PORT": str(free_port()), "NGINX_STATUS_PORT": str(free_port())}
    chosen |= {"FLASK_PORT": str(upstream), "NGINX_TRUSTED_PROXIES": proxies}
    env = environment(settings() | chosen, tmp_path)
    render(env)
    command = nginx_command(env, env["NGINX_RUN_DIR"])
    url = f"http://127.0.0.1:{chosen['HTTP_PORT']}"
    with (
        (tmp_path / "log").open("wb") as log,
        running(command, f"{url}/health-check", 30, env=env, output=log),
    ):
        assert requests.get(url, headers=headers, timeout=10).text == passed_on
