"""Whether nginx uses a connection again after a 304 that renews a cached answer to HEAD.

The 304 says `Connection: close`, but nginx reads that header in the cached answer (1.22 and 1.30).
That is why flask/gunicorn_workers.py says close in the answer that nginx caches, too.
"""

from __future__ import annotations

import socketserver
from functools import partial
from pathlib import Path

import pytest
import requests

from tests.replicas import Replica, proxy, serving
from tests.stacks import wait_until


class Origin(Replica):
    """Sends `connection` as the header `Connection` of the answer that nginx caches."""

    def __init__(self, connection: bytes) -> None:
        super().__init__(_Handler)
        self.connection = connection


class _Handler(socketserver.StreamRequestHandler):
    server: Origin

    def handle(self) -> None:
        while line := self.rfile.readline():
            headers = b"".join(iter(self.rfile.readline, b"\r\n"))
            if b"If-None-Match" in headers:
                self.wfile.write(
                    b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nConnection: close\r\n\r\n'
                )
                self.rfile.readline()  # until nginx closes the connection, or sends a request on it
                return
            if line.startswith(b"POST"):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                self.wfile.write(
                    b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: 2\r\nConnection: %s\r\n\r\n'
                    % self.server.connection
                )


@pytest.mark.parametrize(
    ("connection", "status"),
    [(b"close", requests.codes.ok), (b"keep-alive", requests.codes.bad_gateway)],
)
def test_request_after_a_renewal(tmp_path: Path, connection: bytes, status: int) -> None:
    with (
        serving(1, partial(Origin, connection)) as origins,
        proxy(tmp_path, origins, NGINX_CACHE_TTL="1s") as running,
        # On one connection, so nginx handles its requests one after the other.
        requests.Session() as client,
    ):

        def renews() -> bool:
            answer = client.head(running.url + "/cache-me", timeout=10)
            return answer.headers["X-Cache-Status"] == "STALE"

        wait_until(renews, 10, "nginx to renew its answer")
        assert client.post(running.url, timeout=10).status_code == status
