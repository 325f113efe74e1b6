"""The routes that are slow or fail: their responses, and that only a variable switches them on."""

import importlib.util
import time

import pytest
from flask import Flask
from flask.testing import FlaskClient

from local.settings import ROOT
from tests import sample

if not sample.demo_is_in_place():
    pytest.skip("flask/ has another app than the sample", allow_module_level=True)

from demo import demo, enabled


@pytest.fixture
def client() -> FlaskClient:
    app = Flask(__name__)
    app.register_blueprint(demo)
    return app.test_client()


def test_slow_answers_after_the_given_seconds(client: FlaskClient) -> None:
    begin = time.monotonic()
    assert client.get("/demo/slow?seconds=0.2").text == "after 0.2 s\n"
    assert time.monotonic() - begin >= 0.2


@pytest.mark.parametrize("seconds", ["-1", "11", "nan", "inf", "soon", ""])
def test_slow_refuses_other_values(client: FlaskClient, seconds: str) -> None:
    response = client.get(f"/demo/slow?seconds={seconds}")
    assert response.status_code == 400
    assert "expected a number from 0 to 10" in response.text


def test_error_answers_500(client: FlaskClient) -> None:
    assert client.get("/demo/error").status_code == 500


def rules(name: str) -> set[str]:
    """Load the sample application again, and return its URL rules."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "flask" / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {rule.rule for rule in module.app.url_map.iter_rules()}


@pytest.mark.parametrize("value", ["true", "false", "", None])
def test_only_the_variable_switches_them_on(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("FLASK_DEMO", raising=False)
    else:
        monkeypatch.setenv("FLASK_DEMO", value)
    assert ("/demo/slow" in rules(f"app_{value}")) == (value == "true")


def test_another_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_DEMO", "yes")
    with pytest.raises(ValueError, match="FLASK_DEMO=yes: expected true or false"):
        enabled()
