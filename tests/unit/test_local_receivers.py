"""The first half of an alert's way, as `./stack test-alert` tests it: does the Watchdog arrive?"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from local import receivers
from local.settings import StackError
from tests.stacks import free_port


class Alertmanager(http.server.ThreadingHTTPServer):
    """Has these alerts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.updated: list[datetime] = []


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as /api/v2/alerts does."""

    server: Alertmanager

    def do_GET(self) -> None:
        alerts = [{"updatedAt": each.isoformat()} for each in self.server.updated]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(alerts).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def alertmanager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alertmanager]:
    monkeypatch.setattr(receivers, "WATCHDOG_WITHIN", 0)
    with Alertmanager() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("ages", "arrives", "message"),
    [
        ([600, 70], True, "alerts arrive at Alertmanager"),
        ([600], False, "last arrived 60"),  # 600 s ago, or a few more on a busy machine
        ([], False, "has not arrived"),
    ],
)
def test_the_watchdog_shows_whether_prometheus_reaches_alertmanager(
    alertmanager: Alertmanager, ages: list[int], arrives: bool, message: str
) -> None:
    alertmanager.updated = [datetime.now(UTC) - timedelta(seconds=age) for age in ages]
    told: list[str] = []
    assert receivers._watchdog_arrives(alertmanager.url, told.append) is arrives
    assert message in told[-1]


def test_an_alertmanager_that_does_not_answer_is_named() -> None:
    with pytest.raises(StackError, match="Alertmanager does not answer"):
        receivers._watchdog(f"http://127.0.0.1:{free_port()}")
