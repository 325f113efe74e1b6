"""The lines that a real nginx writes to the access metrics log, read by the exporter's parser.

The nginx of this machine and that of the image run the same configuration: the project's log
format, with an upstream that misbehaves on demand.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import urllib3

from local.settings import ROOT, settings
from nginx_access_exporter.line import Request, parse
from tests.stacks import engine_missing, free_port, wait_until

LOG_FORMAT = ROOT / "nginx" / "include" / "metrics-log-format.conf"
BODY = b"x" * 50_000
CUT_OFF = 20_000
# More than the buffers of nginx and both sockets hold.
LARGE = 50_000_000

CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
{user}
events {{ worker_connections 256; }}
http {{
    {log_format}
    access_log {folder}/access.log metrics;    # unbuffered, so that no test waits for the buffer
    proxy_cache_path {folder}/cache keys_zone=cache:1m use_temp_path=off;
    client_body_temp_path {folder}/temporary; proxy_temp_path {folder}/temporary;
    fastcgi_temp_path {folder}/temporary; uwsgi_temp_path {folder}/temporary;
    scgi_temp_path {folder}/temporary;
    gzip on;
    gzip_proxied any;
    proxy_cache_valid 200 1h;
    proxy_cache_use_stale error;
    upstream flask {{ server 127.0.0.1:{upstream}; }}
    upstream replicas {{
        server 127.0.0.1:{dead} max_fails=0;
        server 127.0.0.1:{upstream} max_fails=0 backup;
    }}
    server {{
        listen 127.0.0.1:{port};
        error_page 502 504 = @ask-again;
        location @ask-again {{ proxy_pass http://flask; }}
        location / {{ return 404; }}
        location /plain/ {{ proxy_pass http://flask; }}
        location /cached/ {{
            proxy_cache cache;
            proxy_ignore_client_abort on;
            proxy_pass http://flask;
        }}
        location /retried/ {{ proxy_pass http://replicas; }}
        location /asked-again/ {{ proxy_pass http://127.0.0.1:{dead}; }}
        location /stale/ {{
            proxy_cache cache;
            proxy_cache_key stale;
            proxy_cache_valid 200 1s;
            set $stale_upstream 127.0.0.1:{upstream};
            if ($arg_dead) {{ set $stale_upstream 127.0.0.1:{dead}; }}
            proxy_pass http://$stale_upstream;
        }}
        location /files/ {{ set $route static; alias {folder}/files/; }}
        location /files-or-flask/ {{
            set $route static;
            root {folder}/files;
            try_files $uri @ask-again;
        }}
        location /named/ {{
            set $route "/named";
            error_page 599 /;
            proxy_pass http://127.0.0.1:{dead};
        }}
    }}
}}
"""


class Upstream(socketserver.StreamRequestHandler):
    """Answers `/…/NAME` as its method `NAME` does, and names that path as the route."""

    def handle(self) -> None:
        method, target, _ = self.rfile.readline().decode().split()
        self.headers = b"".join(iter(self.rfile.readline, b"\r\n"))
        path = target.partition("?")[0]
        self.route = "/" + path.rpartition("/")[2]
        with contextlib.suppress(OSError):
            getattr(self, self.route[1:])(BODY if method == "GET" else b"")

    def head(self, *headers: str, status: str = "200 OK") -> None:
        lines = [f"HTTP/1.1 {status}", f"X-Route: {self.route}", "Connection: close", *headers]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode())

    def whole(self, body: bytes) -> None:
        self.head(f"Content-Length: {len(BODY)}", "Content-Type: text/html", 'ETag: "1"')
        self.wfile.write(body)

    def chunked(self, body: bytes) -> None:
        self.head("Transfer-Encoding: chunked")
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    def until_closed(self, body: bytes) -> None:
        self.head()
        self.wfile.write(body)

    def unchanged(self, _: bytes) -> None:
        self.head(f"Content-Length: {len(BODY)}", status="304 Not Modified")

    def cut(self, body: bytes) -> None:
        self.head(f"Content-Length: {len(BODY)}")
        self.wfile.write(body[:CUT_OFF])

    def late(self, body: bytes) -> None:
        time.sleep(0.5)  # until nginx has noticed that the client left
        self.whole(body)

    def silent(self, _: bytes) -> None:
        self.rfile.read()  # until nginx closes the connection

    def stuck(self, body: bytes) -> None:
        self.cut(body)
        self.rfile.read()

    def large(self, _: bytes) -> None:
        self.head(f"Content-Length: {LARGE}")
        self.wfile.write(bytes(LARGE))


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    """The port of the upstream."""
    with Server(("127.0.0.1", free_port()), Upstream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class Nginx:
    """A running nginx, and the requests in its access metrics log."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "access.log"
        self._read = 0

    def get(self, path: str, method: str = "GET", **headers: str) -> Request:
        """Send a request and return its line in the log."""
        with (
            requests.request(
                method, self.url + path, headers=headers, timeout=10, stream=True
            ) as response,
            contextlib.suppress(urllib3.exceptions.HTTPError),
        ):
            response.raw.read()
        return self.logged()

    def leave(self, path: str, after: bytes, *, reset: bool = True) -> Request:
        """Send a request, leave after some bytes, and return its line in the log."""
        return self.send(f"GET {path} HTTP/1.1\r\nHost: nginx\r\n\r\n".encode(), after, reset)

    def send(self, data: bytes, after: bytes, reset: bool) -> Request:
        """Send data, end the connection after some bytes, and return the line in the log."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(data)
            received = b""
            while after not in received:
                received += client.recv(4096)
        return self.logged()

    def logged(self) -> Request:
        """The next request in the log."""

        def lines() -> list[bytes]:
            return self._log.read_bytes().split(b"\n")[self._read : -1]

        (line,) = wait_until(lines, 10, "a line in the log")
        self._read += 1
        return parse(line)


@pytest.fixture(scope="module", params=["local", "image"])
def nginx(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: int
) -> Iterator[Nginx]:
    """nginx of this machine, and of the image."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    (folder / "files").mkdir()
    (folder / "files" / "file.txt").write_text("a file that nginx serves")
    config = folder / "nginx.conf"
    config.write_text(
        CONFIG.format(
            folder=folder,
            log_format=LOG_FORMAT.read_text(),
            user="user root;" if os.geteuid() == 0 else "",
            port=port,
            upstream=upstream,
            dead=free_port(),
        )
    )
    command = ["nginx", "-e", "stderr", "-p", folder, "-c", config]
    if request.param == "image":
        if engine_missing():
            pytest.skip(engine_missing())
        run = ["docker", "run", "--rm", "--network=host", f"--user={os.geteuid()}:{os.getegid()}"]
        mount = f"--volume={folder}:{folder}"
        command = [*run, mount, "--entrypoint=nginx", settings()["NGINX_IMAGE"], *command[1:]]
    with (
        (folder / "stderr").open("wb") as stderr,
        subprocess.Popen(command, stderr=stderr) as process,
    ):
        try:
            running = Nginx(folder, port)
            wait_until(lambda: requests.get(running.url, timeout=5).status_code, 60, "nginx")
            running.logged()
            yield running
        finally:
            process.terminate()


def test_complete_responses_are_complete(nginx: Nginx) -> None:
    for kind in ("plain", "cached", "cached", "retried", "asked-again"):
        for name in ("whole", "chunked", "until_closed"):
            for method in ("GET", "HEAD"):
                found = nginx.get(f"/{kind}/{name}", method)
                assert found.incomplete is None, found
                assert (found.route, found.status, found.method) == (f"/{name}", "200", method)


def test_a_compressed_response_is_complete(nginx: Nginx) -> None:
    for kind in ("plain", "cached", "cached"):
        found = nginx.get(f"/{kind}/whole?compressed", **{"Accept-Encoding": "gzip"})
        assert found.incomplete is None
        assert found.bytes_sent < len(BODY)


def test_an_unchanged_response_is_complete(nginx: Nginx) -> None:
    assert nginx.get("/plain/unchanged").incomplete is None
    nginx.get("/cached/whole?unchanged")
    found = nginx.get("/cached/whole?unchanged", **{"If-None-Match": '"1"'})
    assert (found.status, found.cache, found.incomplete) == ("304", "HIT", None)


def test_a_stale_response_after_a_failed_attempt_is_complete(nginx: Nginx) -> None:
    assert nginx.get("/stale/whole").cache == "MISS"
    found = wait_until(
        lambda: (found := nginx.get("/stale/whole?dead=1")).cache == "STALE" and found, 10, "STALE"
    )
    assert (found.incomplete, found.attempts, found.route) == (None, ("502",), "/whole")


@pytest.mark.parametrize("kind", ["plain", "cached", "retried", "asked-again"])
def test_a_body_that_the_upstream_cuts_off_has_the_cause_upstream(nginx: Nginx, kind: str) -> None:
    found = nginx.get(f"/{kind}/cut")
    assert (found.route, found.status, found.incomplete) == ("/cut", "200", "upstream")
    assert found.bytes_sent < len(BODY)


def test_a_response_whose_client_leaves_has_the_cause_client(nginx: Nginx) -> None:
    found = nginx.leave("/plain/silent", after=b"")
    assert (found.status, found.attempts, found.incomplete) == ("499", ("none",), "client")
    for path in ("/plain/stuck", "/plain/large", "/cached/large", "/cached/large"):
        found = nginx.leave(path, after=b"\r\n\r\n")
        assert (found.status, found.incomplete) == ("200", "client"), path
        assert 0 < found.bytes_sent < LARGE


def test_an_answer_is_cached_although_its_client_left_before_it_came(nginx: Nginx) -> None:
    for reset in (False, True):
        path = f"/cached/late?reset={reset}"
        left = nginx.leave(path, after=b"", reset=reset)
        assert (left.status, left.cache, left.route) == ("200", "MISS", "/late")
        assert left.incomplete in (None, "client")
        assert nginx.get(path).cache == "HIT"


@pytest.mark.parametrize("reset", [False, True])
def test_a_half_request_has_the_cause_client(nginx: Nginx, reset: bool) -> None:
    found = nginx.send(b"GET / HTTP/1.1\r\nHost", after=b"", reset=reset)
    assert (found.status, found.bytes_sent, found.incomplete) == ("400", 0, "client")


def test_a_response_that_nginx_cannot_write_to_its_cache_has_the_cause_nginx(
    nginx: Nginx,
) -> None:
    shutil.rmtree(nginx.folder / "cache")
    try:
        with pytest.raises(requests.ConnectionError):
            nginx.get("/cached/whole?lost")
        found = nginx.logged()
        assert (found.status, found.cache, found.bytes_sent) == ("200", "MISS", 0)
        assert (found.route, found.incomplete) == ("/whole", "nginx")
        assert nginx.get("/cached/whole?lost", "HEAD").incomplete is None
    finally:
        (nginx.folder / "cache").mkdir()


def test_a_location_names_the_route_of_responses_without_flask(nginx: Nginx) -> None:
    for path, status, route in (
        ("/", "404", "none"),
        ("/files/file.txt", "200", "static"),
        ("/files/missing", "404", "static"),
        ("/files-or-flask/whole", "200", "/whole"),
        ("/named/whole", "502", "/named"),
        ("/plain/whole", "200", "/whole"),
    ):
        found = nginx.get(path)
        assert (found.status, found.route) == (status, route), path


def test_a_request_that_nginx_does_not_understand_has_no_route(nginx: Nginx) -> None:
    with socket.create_connection(("127.0.0.1", nginx.port)) as client:
        client.sendall(b"nonsense\r\n\r\n")
        assert client.recv(4096)
    found = nginx.logged()
    assert (found.route, found.method, found.status) == ("none", "OTHER", "400")
