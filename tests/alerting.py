"""Traffic for tests of alerting, and receivers of the messages."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import threading
import uuid
from collections.abc import Iterator
from email import message_from_bytes, policy
from typing import Any

import requests

from tests.stacks import Stack

Message = dict[str, Any]


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
