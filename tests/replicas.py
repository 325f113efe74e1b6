"""The nginx of this machine with the project's configuration, before several fake replicas."""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import requests

from local.render import render
from local.settings import DEFAULT_PORTS, environment, settings
from tests.servers import nginx_command, running
from tests.stacks import free_port


class Replica(socketserver.ThreadingTCPServer):
    """Answers any request, unless it hangs; for /deadly it closes the connection instead."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[socketserver.StreamRequestHandler] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or _Handler)
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
def serving(count: int, make: Callable[[], Replica] = Replica) -> Iterator[list[Replica]]:
    """Run so many replicas."""
    with contextlib.ExitStack() as started:
        replicas = [started.enter_context(make()) for _ in range(count)]
        for replica in replicas:
            threading.Thread(target=replica.serve_forever, daemon=True).start()
            started.callback(replica.shutdown)
            started.callback(replica.released.set)
        yield replicas


@contextlib.contextmanager
def proxy(folder: Path, replicas: list[Replica], **given: str) -> Iterator[Proxy]:
    """Run nginx before these replicas, with these settings."""
    numbers = {name: str(free_port()) for name in DEFAULT_PORTS}
    env = environment(settings() | numbers | {"NGINX_WORKER_PROCESSES": "2"} | given, folder)
    render(env)
    run = env["NGINX_RUN_DIR"]
    _name_replicas(Path(run, "conf.d", "flask-app.conf"), env["FLASK_APP_SERVER"], replicas)
    url = f"http://127.0.0.1:{env['HTTP_PORT']}"
    with running(nginx_command(env, run), f"{url}/health-check", 10, env=env):
        yield Proxy(url, replicas)


def _name_replicas(config: Path, server: str, replicas: list[Replica]) -> None:
    """Repeat each `server` of the upstream for every replica, as `resolve` does."""

    def repeated(line: re.Match[str]) -> str:
        return "\n".join(line[0].replace(server, replica.address) for replica in replicas)

    text, found = re.subn(rf" server {server} .*;", repeated, config.read_text())
    assert found
    config.write_text(text)
