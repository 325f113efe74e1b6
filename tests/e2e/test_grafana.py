"""The checks of tests/grafana_check.py, wherever a Grafana runs with the stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import requests

from local.settings import grafana_program, settings
from tests.grafana_check import CHECKS, Grafana, check_figures
from tests.stacks import Stack, grafana_image, launch


@pytest.fixture(scope="module")
def watched(kind: str) -> Iterator[Stack]:
    """A stack of its own, with a Grafana; no other test sends it requests."""
    if kind == "local" and not grafana_program(settings()):
        pytest.skip("no Grafana for local processes: ./stack grafana, or set GRAFANA_HOME")
    if kind == "compose" and not grafana_image():
        pytest.skip("no image of Grafana, and none can be pulled")
    with launch(kind) as stack:
        yield stack


@pytest.fixture(scope="module")
def grafana(watched: Stack) -> Grafana:
    found = Grafana(f"http://127.0.0.1:{watched.ports['GRAFANA_PORT']}")
    requests.get(f"{found.url}/api/health", timeout=10).raise_for_status()
    return found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_grafana(check: Callable[[Grafana], None], grafana: Grafana) -> None:
    check(grafana)


def test_a_healthy_start_logs_no_error_about_our_files(grafana: Grafana, watched: Stack) -> None:
    del grafana  # it has started
    errors = [line for line in watched.logs("grafana").splitlines() if '"level":"error"' in line]
    assert [line for line in errors if "provisioning" in line or "plugin" in line] == []


def test_grafana_shows_the_traffic_that_was_sent(grafana: Grafana, watched: Stack) -> None:
    check_figures(grafana, watched.http)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.com"},
        {"Origin": "http://localhost:1"},  # Grafana itself would not look at the port
        {"Host": "rebound.example.com", "Origin": "http://rebound.example.com"},
        {"Host": "rebound.example.com"},
    ],
)
def test_a_page_of_another_origin_gets_nothing_of_grafana(
    grafana: Grafana, headers: dict[str, str]
) -> None:
    for method, path in (("GET", "/api/search"), ("POST", "/api/ds/query"), ("GET", "/metrics")):
        answer = requests.request(method, grafana.url + path, headers=headers, timeout=10)
        assert answer.status_code == 403
        assert "console" in answer.text.lower() or "origin" in answer.text


def test_live_updates_pass_the_gate(grafana: Grafana) -> None:
    upgrade = {
        "Origin": grafana.url,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    url = f"{grafana.url}/api/live/ws"
    with requests.get(url, headers=upgrade, stream=True, timeout=10) as answer:
        assert answer.status_code == 101
