"""Web pages of other origins reach neither Prometheus nor Alertmanager; people do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
import requests

from tests.stacks import COMPOSE_FILES, ComposeStack, LocalStack, Stack

READY = {"prometheus": (9090, "Prometheus Server is Ready."), "alertmanager": (9093, "OK")}


def post_silence(stack: Stack, **headers: str) -> requests.Response:
    now = datetime.now(UTC)
    silence = {
        "matchers": [{"name": "alertname", "value": ".*", "isRegex": True}],
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(seconds=2)).isoformat(),
        "createdBy": "a page",
        "comment": "all of them",
    }
    url = f"{stack.alertmanager}/api/v2/silences"
    return requests.post(url, json=silence, headers=headers, timeout=10)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.com"},
        {"Origin": "http://localhost:1"},
        {"Origin": "null"},
        {"Host": "rebound.example.com", "Origin": "http://rebound.example.com"},
        {"Host": "rebound.example.com"},
    ],
)
def test_a_page_of_another_origin_can_neither_read_nor_silence(
    stack: Stack, headers: dict[str, str]
) -> None:
    urls = [
        f"{stack.prometheus}/api/v1/query?query=up",
        f"{stack.prometheus}/metrics",
        f"{stack.alertmanager}/api/v2/status",
    ]
    answers = [requests.get(url, headers=headers, timeout=10) for url in urls]
    answers += [
        requests.post(f"{stack.alertmanager}/-/reload", headers=headers, timeout=10),
        post_silence(stack, **headers),
    ]
    assert [answer.status_code for answer in answers] == [403] * len(answers)
    assert requests.get(f"{stack.alertmanager}/api/v2/silences", timeout=10).json() == []


def test_people_see_pages_and_their_own_pages_can_silence(stack: Stack) -> None:
    pages = ("prometheus", "/"), ("prometheus", "/user/runbooks.html"), ("alertmanager", "/metrics")
    for service, path in pages:
        url = getattr(stack, service)
        answer = requests.get(url + path, timeout=10)
        assert answer.status_code == 200
        # Redirects stay on the gate.
        assert urlsplit(answer.url).port == urlsplit(url).port
    answer = post_silence(stack, Origin=stack.alertmanager)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("Access-Control")]
    url = f"{stack.alertmanager}/api/v2/silence/{answer.json()['silenceID']}"
    assert requests.delete(url, headers={"Origin": stack.alertmanager}, timeout=10).ok


def test_nobody_can_go_round_the_gate(stack: Stack) -> None:
    if isinstance(stack, LocalStack):
        for service in READY:
            for path in ("/", "/-/ready", "/metrics", "/api/v2/status"):
                port = stack.ports[f"{service.upper()}_GATED_PORT"]
                answer = requests.get(f"http://127.0.0.1:{port}{path}", timeout=10)
                assert (answer.status_code, answer.history) == (401, [])
        return
    with bare_consoles() as consoles:
        for service, (port, ready) in READY.items():
            assert answer_of(getattr(consoles, service)) == ready
            networks = consoles.networks(service)
            addresses = [network["IPAddress"] for network in networks.values()]
            assert len(addresses) == 2
            assert ready not in [answer_of(f"http://{address}:{port}") for address in addresses]


@contextlib.contextmanager
def bare_consoles() -> Iterator[ComposeStack]:
    """Prometheus, Alertmanager and the gate, in the networks that users have."""
    stack = ComposeStack({})
    stack.files = [COMPOSE_FILES[0]]
    try:
        stack.compose("up", "--wait", "--no-deps", "console-gate", *READY)
        yield stack
    finally:
        stack.down()


def answer_of(url: str) -> str:
    """What answers at an address, if anything does."""
    try:
        return requests.get(f"{url}/-/ready", timeout=3).text.strip()
    except requests.RequestException:
        return ""
