"""Web pages of other origins reach neither Prometheus nor Alertmanager; people do."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests

from tests.alerting import post_silence
from tests.stacks import COMPOSE_FILES, ROOT, ComposeStack, LocalStack, Stack

READY = {"prometheus": (9090, "Prometheus Server is Ready."), "alertmanager": (9093, "OK")}


def silence_all(stack: Stack, headers: dict[str, str]) -> requests.Response:
    return post_silence(stack, ".+", 2, "all of them", headers)


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
        silence_all(stack, headers),
    ]
    assert [answer.status_code for answer in answers] == [403] * len(answers)
    assert requests.get(f"{stack.alertmanager}/api/v2/silences", timeout=10).json() == []


def test_people_see_pages_and_their_own_pages_can_silence(stack: Stack) -> None:
    runbooks = requests.get(f"{stack.prometheus}/user/runbooks.html", timeout=10)
    assert "<h1>" in runbooks.text
    first = requests.get(stack.prometheus, timeout=10, allow_redirects=False)
    assert first.status_code == 302
    assert urljoin(stack.prometheus, first.headers["Location"]).startswith(stack.prometheus)
    answer = silence_all(stack, {"Origin": stack.alertmanager})
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


def test_a_login_can_be_demanded(stack: Stack, tmp_path: Path) -> None:
    if isinstance(stack, LocalStack):
        pytest.skip("compose.login.yaml is for Compose")
    hashed = subprocess.check_output(["openssl", "passwd", "-apr1", "secret"], text=True)
    (tmp_path / "logins").write_text(f"user:{hashed}")
    with bare_consoles(CONSOLE_LOGINS=str(tmp_path / "logins")) as consoles:
        for service, (_, ready) in READY.items():
            url = f"{getattr(consoles, service)}/-/ready"
            for login, status in (
                (None, 401),
                (("user", "guess"), 401),
                (("user", "secret"), 200),
            ):
                assert requests.get(url, auth=login, timeout=10).status_code == status
            foreign = {"Origin": "https://example.com"}
            answer = requests.get(url, auth=("user", "secret"), headers=foreign, timeout=10)
            assert answer.status_code == 403
            assert requests.get(url, auth=("user", "secret"), timeout=10).text.strip() == ready


@contextlib.contextmanager
def bare_consoles(**login: str) -> Iterator[ComposeStack]:
    """Prometheus, Alertmanager and the gate, in the networks that users have."""
    stack = ComposeStack(login)
    stack.files = [COMPOSE_FILES[0], *([ROOT / "compose.login.yaml"] if login else [])]
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
