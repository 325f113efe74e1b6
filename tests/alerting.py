"""For tests of alerting: rules in which time passes faster, traffic, and receivers of messages."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socketserver
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import requests

from local.settings import ROOT
from tests.stacks import Stack

SPEED = 10  # with a higher speed, alerts can come in the wrong order on a busy machine
MILLISECONDS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
# A window or its step in an expression, an offset, and the settings that are a duration.
DURATION = re.compile(
    r"(?:(?<=[\[:])|(?<=offset )|(?<=for: )|(?<=interval: )|(?<=timeout: )|(?<=group_wait: ))"
    r"(\d+)([smhd])\b"
)
UNLOGGED = re.compile(r'(unlogged_requests_per_second", expr:) (\d+)')
GUNICORN_TIMEOUT = 3  # seconds

Message = dict[str, Any]


def faster(text: str) -> str:
    """A configuration file's text with every duration divided by SPEED."""
    text = DURATION.sub(lambda found: f"{int(found[1]) * MILLISECONDS[found[2]] // SPEED}ms", text)
    # Scrapes are requests too, which nginx does not log; there are more of them now.
    text = UNLOGGED.sub(lambda found: f"{found[1]} {int(found[2]) * SPEED}", text)
    # With 1 s for a scrape and two evaluations a second, Prometheus could not even scrape itself
    # on a busy machine.
    text = re.sub(r"(scrape_interval|scrape_timeout): +\d+ms", r"\1: 2s", text)
    return re.sub(r"(evaluation_interval): +\d+ms", r"\1: 1s", text)


def faster_configuration(folder: Path) -> dict[str, str]:
    """Copy rules, prometheus.yml and alertmanager.yml; return the settings that select them.

    In the copies, every `for`, window and interval is divided by SPEED, except those of scrapes and
    of the evaluation.
    """
    source = ROOT / "prometheus"
    (folder / "rules").mkdir()
    for path in (*source.glob("rules/*.yml"), *source.glob("*.yml")):
        (folder / path.relative_to(source)).write_text(faster(path.read_text()))
    return {
        "PROMETHEUS_RULES_DIR": str(folder / "rules"),
        "PROMETHEUS_CONFIG": str(folder / "prometheus.yml"),
        "ALERTMANAGER_CONFIG": str(folder / "alertmanager.yml"),
    }


def post_silence(
    stack: Stack, alertname: str, seconds: float, comment: str, headers: dict[str, str]
) -> requests.Response:
    """Ask Alertmanager to silence alerts from now on.

    Args:
        stack: whose Alertmanager is asked.
        alertname: a regular expression.
        seconds: how long.
        comment: the silence's.
        headers: of the request.
    """
    now = datetime.now(UTC)
    silence = {
        "matchers": [{"name": "alertname", "value": alertname, "isRegex": True}],
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(seconds=seconds)).isoformat(),
        "createdBy": "test",
        "comment": comment,
    }
    url = f"{stack.alertmanager}/api/v2/silences"
    return requests.post(url, json=silence, headers=headers, timeout=10)


class Receivers:
    """Servers that take Alertmanager's messages and keep them, by the path or name of each."""

    def __init__(self) -> None:
        self._messages: dict[str, list[Any]] = {"/webhook": [], "/slack": [], "mail": []}
        self.http_port = 0
        self.smtp_port = 0

    def messages(self, receiver: str) -> list[Any]:
        """What a receiver has got so far."""
        return list(self._messages[receiver])

    def alerts(self, name: str, status: str) -> list[Message]:
        """The alerts of this name and status that the webhook got."""
        alerts = [alert for message in self.messages("/webhook") for alert in message["alerts"]]
        return [
            alert
            for alert in alerts
            if alert["labels"]["alertname"] == name and alert["status"] == status
        ]

    @contextlib.contextmanager
    def serving(self) -> Iterator[Receivers]:
        """Serve on free ports of every address: containers come from their own network."""
        messages = self._messages

        class WebHandler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                messages[self.path].append(json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class MailHandler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 test\r\n")
                for line in self.rfile:
                    command = line[:4].upper()
                    if command == b"DATA":
                        self.wfile.write(b"354 go on\r\n")
                        text = b"".join(iter(self.rfile.readline, b".\r\n"))
                        messages["mail"].append(message_from_bytes(text, policy=policy.default))
                    self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")

        web = http.server.ThreadingHTTPServer(("0.0.0.0", 0), WebHandler)
        mail = socketserver.ThreadingTCPServer(("0.0.0.0", 0), MailHandler)
        with web, mail:
            self.http_port, self.smtp_port = web.server_address[1], mail.server_address[1]
            for server in (web, mail):
                threading.Thread(target=server.serve_forever, daemon=True).start()
            yield self
            web.shutdown()
            mail.shutdown()


@contextlib.contextmanager
def traffic(stack: Stack, path: str, *, busting: bool = False) -> Iterator[None]:
    """Requests for as long as the context lasts: the same path, or one that is new each time."""
    ended = threading.Event()

    def run() -> None:
        with requests.Session() as session:
            while not ended.wait(0.05):
                query = f"{'&' if '?' in path else '?'}n={uuid.uuid4()}" if busting else ""
                with contextlib.suppress(requests.RequestException):
                    session.get(f"{stack.http}{path}{query}", timeout=10)

    client = threading.Thread(target=run)
    client.start()
    try:
        yield
    finally:
        ended.set()
        client.join()
