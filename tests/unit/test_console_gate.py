"""What console-gate lets through: a real nginx with the project's template, and a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
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

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
# A name of the attacker's that resolves to this machine.
REBOUND = "rebound.example.com"
# What a page can try: to read, and to change something with and without asking for permission.
PAGE = """<!doctype html><pre id="results"></pre><script>
async function attempt(url, options) {
  try {
    const answer = await fetch(url, options)
    return answer.type === "opaque" ? "unreadable" : await answer.text()
  } catch {
    return "refused"
  }
}
(async () => {
  const json = {method: "POST", headers: {"Content-Type": "application/json"}, body: "{}"}
  const results = {}
  for (const place of ["open", "gated"]) {
    const url = {"open": "%(open)s", "gated": "%(gated)s"}[place]
    results[place] = [
      await attempt(url + "/read"),
      await attempt(url + "/change", json),
      await attempt(url + "/change", {method: "POST", mode: "no-cors", body: "{}"}),
    ]
  }
  document.getElementById("results").textContent = JSON.stringify(results)
})()
</script>"""


class Console(BaseHTTPRequestHandler):
    """Lets every origin do everything, as Alertmanager does; answers with what it was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"{self.command} {self.path}")
        body = json.dumps({"uri": self.path, "headers": dict(self.headers)}).encode()
        if self.path.startswith("/page?"):
            body = self.server.page.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        for name in ("Origin", "Methods", "Headers"):
            self.send_header(f"Access-Control-Allow-{name}", "*")
        self.send_header("Access-Control-Expose-Headers", "Date")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def do_OPTIONS(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Stay silent."""


class Gated(ThreadingHTTPServer):
    """A console, the URL of the gate before it, and what reached it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Console)
        self.asked: list[str] = []
        self.page = ""
        self.open = f"http://localhost:{self.server_port}"
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    """Alertmanager's place behind the gate."""
    folder = tmp_path_factory.mktemp("gate")
    with Gated() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chosen = {
            "ALERTMANAGER_PORT": str(server.port),
            "ALERTMANAGER_GATED_PORT": str(server.server_port),
            "PROMETHEUS_PORT": str(free_port()),
            "CONSOLE_HOSTS": "monitoring.example.com *.example.net",
        }
        env = environment(settings() | chosen, folder)
        render(env)
        command = nginx_command(env, env["CONSOLE_RUN_DIR"])
        try:
            with running(command, f"{server.url}/health-check", 30, env=env):
                yield server
        finally:
            server.shutdown()


@pytest.fixture(autouse=True)
def forget(console: Gated) -> None:
    """Forget what reached the console in the test before."""
    console.asked.clear()


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "[::1]", "LocalHost", "monitoring.example.com", "a.example.net"],
)
def test_names_of_this_machine_and_of_the_settings_have_access(console: Gated, host: str) -> None:
    for name in (host, f"{host}:{console.port}", f"{host}:1"):
        origin = f"://{name.lower()}"  # browsers write it so
        own = {"Host": name, "Origin": f"http{origin}"}
        for headers in ({"Host": name}, own, own | {"Origin": f"https{origin}"}):
            answer = requests.post(f"{console.url}/change", headers=headers, timeout=5)
            assert answer.status_code == 200
            assert answer.json()["headers"]["Host"] == name.lower()


@pytest.mark.parametrize(
    "host",
    [REBOUND, "localhost.example.com", "example.net", "127.0.0.1.example.com", "10.0.0.1", ""],
)
def test_other_names_are_refused(console: Gated, host: str) -> None:
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        answer = requests.get(f"{console.url}/read", headers=headers, timeout=5)
        assert answer.status_code in ((403,) if host else (400, 403))
    assert console.asked == []


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://example.com",
        "http://localhost",
        "http://localhost:1",
        "http://localhost:{port}.example.com",
        "http://example.com/localhost:{port}",
        "http://x@localhost:{port}",
        "file://",
    ],
)
def test_other_origins_are_refused(console: Gated, origin: str) -> None:
    headers = {"Origin": origin.format(port=console.port)}
    for method in ("GET", "POST", "OPTIONS", "DELETE"):
        answer = requests.request(method, f"{console.url}/change", headers=headers, timeout=5)
        assert answer.status_code == 403
    assert console.asked == []


def test_no_answer_gives_rights_to_other_origins_or_to_frames(console: Gated) -> None:
    for headers in ({}, {"Origin": console.url}):
        answer = requests.get(f"{console.url}/read", headers=headers, timeout=5)
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
        assert answer.headers["X-Frame-Options"] == "DENY"


def test_the_request_arrives_unchanged_but_for_the_password(console: Gated) -> None:
    uri = "/api/v2/alerts?filter=a%3D%22b%22&x=%2F..%2F"
    mine = {"Authorization": "Basic bWU6bWU=", "Upgrade": "websocket", "Connection": "Upgrade"}
    asked = requests.get(console.url + uri, headers=mine, timeout=5).json()
    assert asked["uri"] == uri
    assert asked["headers"]["Connection"].lower() == "upgrade"
    assert asked["headers"]["Upgrade"] == "websocket"
    assert re.fullmatch("Basic [A-Za-z0-9+/=]{40,}", asked["headers"]["Authorization"])


def test_each_start_has_another_password(tmp_path: Path) -> None:
    passwords = set()
    for _ in range(2):
        env = environment(settings(), tmp_path)
        render(env)
        folder = Path(env["CONSOLE_RUN_DIR"])
        assert folder.stat().st_mode & 0o077 == 0
        passwords.update(re.findall('"Basic (.+)"', (folder / "nginx.conf").read_text()))
        assert not [key for key, value in env.items() if passwords & {value}]
    assert len(passwords) == 2


# --- a browser ------------------------------------------------------------------------------------


def shown(url: str, profile: Path) -> str:
    """The document that a browser has after it ran the page's scripts."""
    if not BROWSER:
        pytest.skip("no chromium on PATH")
    options = [
        "--headless=new",
        "--dump-dom",
        "--virtual-time-budget=20000",
        f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1",
        f"--user-data-dir={profile}",
        "--no-proxy-server",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    done = subprocess.run(
        [BROWSER, *options, url], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_a_page_in_a_browser_can_neither_read_nor_change_anything(
    console: Gated, tmp_path: Path
) -> None:
    console.page = PAGE % {"open": console.open, "gated": console.url}
    page = f"http://{REBOUND}:{console.server_port}/page?"
    found = re.search(r"<pre[^>]*>(\{.*\})</pre>", shown(page, tmp_path))
    assert found
    results = json.loads(found[1])
    # Without the gate, the same page can do all of it.
    assert ["uri" in answer for answer in results["open"]] == [True, True, False]
    assert results["gated"] == ["refused", "refused", "unreadable"]
    # By the open port: the change that needs permission, and what a page may always send.
    changes = [asked for asked in console.asked if "/change" in asked]
    assert changes == ["OPTIONS /change", "POST /change", "POST /change"]


def test_a_rebound_name_shows_nothing_in_a_browser(console: Gated, tmp_path: Path) -> None:
    assert "/read" in shown(f"http://{REBOUND}:{console.server_port}/read", tmp_path)
    document = shown(f"http://{REBOUND}:{console.port}/read", tmp_path)
    assert "CONSOLE_HOSTS" in document
    assert "/read" not in document
