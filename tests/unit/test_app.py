"""The sample application's answers."""

import importlib
import sys

import pytest
from flask.testing import FlaskClient

from local.settings import ROOT
from tests import sample


@pytest.fixture(params=["app", "sample"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """The sample application, and the app of the end-to-end tests, which must answer the same."""
    if request.param == "app" and not sample.is_in_place():
        pytest.skip("flask/ has another app than the sample")
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "apps"))
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    return importlib.import_module(request.param).app.test_client()


def test_root_returns_a_greeting(client: FlaskClient) -> None:
    assert client.get("/").text == "Hello World!"


def test_cache_me_answers_304_if_the_client_has_the_response(client: FlaskClient) -> None:
    first = client.get("/cache-me")
    assert first.status_code == 200
    again = client.get("/cache-me", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.text) == (304, "")
    assert client.get("/cache-me", headers={"If-None-Match": '"other"'}).status_code == 200


def test_info_returns_what_the_app_received(client: FlaskClient) -> None:
    sent = {
        "X-Real-IP": "192.0.2.1",
        "X-Forwarded-For": "192.0.2.2",
        "Host": "example.org",
        "User-Agent": "curl/8",
        "X-Request-ID": "0123abcd",
    }
    assert client.get("/info", headers=sent).json == {
        "connecting_ip": "192.0.2.1",
        "proxy_ip": "192.0.2.2",
        "host": "example.org",
        "user-agent": "curl/8",
        "request_id": "0123abcd",
    }


def test_info_without_headers_has_nulls_and_the_socket_peer(client: FlaskClient) -> None:
    answer = client.get("/info", headers={"User-Agent": ""}, environ_base={"HTTP_USER_AGENT": ""})
    assert answer.status_code == 200
    assert answer.json["proxy_ip"] is answer.json["request_id"] is None
    assert answer.json["connecting_ip"] == "127.0.0.1"


def test_health_check_succeeds(client: FlaskClient) -> None:
    assert client.get("/flask-health-check").text == "success"


@pytest.mark.parametrize(
    ("path", "route"),
    [("/", "/"), ("/cache-me?x=1", "/cache-me"), ("/nothing-here", "unmatched")],
)
def test_route_header_is_the_url_rule(client: FlaskClient, path: str, route: str) -> None:
    assert client.get(path).headers["X-Route"] == route
