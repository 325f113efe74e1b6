"""`./stack reload`, and `up` with a changed app: no request fails, wrong changes are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from local.settings import settings
from tests.load import Load
from tests.stacks import ComposeStack, LocalStack, Stack, launch, wait_until

RATE = 50  # requests a second; docs/reliability.md has the results of 200
ENOUGH = 3 * RATE

APP = """
from flask import Flask
from gunicorn_flask_telemetry.flask_metrics import FlaskMetrics

app = Flask(__name__)
metrics = FlaskMetrics(app)

@app.get("/flask-health-check")
@metrics.do_not_track()
def health_check():
    return "success"

@app.route("/", methods=["GET", "POST"])
def answer():
    return "{answer}"
"""
# Grafana's image may be missing; any image works, since the tests do not use it.
GRAFANA = """
  grafana:
    entrypoint: [sleep, "600"]
    healthcheck: {test: [CMD, "true"]}
"""


class Running:
    """A stack whose app and whose configuration of nginx can be changed."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.app = folder / "changing.py"
        self.configuration = folder / "nginx" / "own.conf"

    def main_processes(self) -> set[object]:
        """The containers of the app, or its workers."""
        if isinstance(self.stack, ComposeStack):
            return set(self.stack.containers("flask-app"))
        arbiter, *others = self.stack.processes("flask-app")
        return {process.pid for process in others if process.command == arbiter.command}

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Load before, while and after; fails if one of its requests does."""
        with Load(f"{self.stack.http}/?size=10", RATE) as load:
            self._more(load)
            yield
            self._more(load)
        assert load.failed == []

    def _more(self, load: Load) -> None:
        enough = len(load.answers) + ENOUGH
        wait_until(lambda: len(load.answers) >= enough, 60, "more answers")


@pytest.fixture(scope="module")
def running(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp(f"changing-{kind}")
    (folder / "nginx").mkdir()
    (folder / "changing.py").write_text(APP.format(answer="first"))
    # An image can only have an app of the repository's folder, so another setting changes there.
    own = {
        "local": {"APP_DIR": str(folder), "WSGI_APP": "changing:app"},
        "compose": {"GRAFANA_IMAGE": settings()["PROMETHEUS_IMAGE"]},
    }
    mount = f"{{type: bind, source: {folder}/nginx, target: /etc/nginx/app, read_only: true}}"
    override = folder / "compose.yaml"
    override.write_text(f"services:\n  nginx-proxy:\n    volumes: [{mount}]{GRAFANA}")
    # On a busy machine, a request may wait for long. It must not fail for that.
    with launch(kind, {"GUNICORN_QUEUE_TIMEOUT": "0"} | own[kind], override) as stack:
        yield Running(stack, folder)


def test_a_reload_of_the_app_fails_no_request(running: Running) -> None:
    before = running.main_processes()
    running.app.write_text(APP.format(answer="second"))
    with running.serving():
        done = running.stack.command("reload", "flask-app")
        assert done.returncode == 0, done.stderr
    assert len(running.main_processes()) == len(before)
    assert not before & running.main_processes()
    if running.stack.kind == "local":
        assert requests.get(running.stack.http, timeout=10).text == "second"


def test_an_app_that_does_not_load_is_refused(running: Running) -> None:
    before, content = running.main_processes(), running.app.read_text()
    app = running.stack.settings["WSGI_APP"]
    running.app.write_text("import no_such_package\n")
    if running.stack.kind == "compose":
        running.stack.settings["WSGI_APP"] = "unimportable:app"
    try:
        with running.serving():
            done = running.stack.command("reload", "flask-app")
        assert done.returncode == 1
        assert "no_such_package" in done.stdout + done.stderr
        assert running.main_processes() == before
    finally:
        running.app.write_text(content)
        running.stack.settings["WSGI_APP"] = app


def test_up_replaces_an_app_that_has_changed_and_no_other(running: Running) -> None:
    if running.stack.kind == "local":
        pytest.skip("without Docker, ./stack up changes nothing that runs")
    before = running.main_processes()
    running.stack.settings["APP_VERSION"] = "2"
    with running.serving():
        done = running.stack.command("up")
        assert done.returncode == 0, done.stderr
    after = running.main_processes()
    assert not before & after
    assert running.stack.total("flask-app", "flask_app_info", version="2") == 1
    assert running.stack.command("up").returncode == 0
    assert running.main_processes() == after


def test_nginx_serves_its_changed_configuration(running: Running) -> None:
    master = running.stack.main_process("nginx-proxy")
    running.configuration.write_text('location = /own { return 200 "own"; }\n')
    done = running.stack.command("reload", "nginx-proxy")
    assert done.returncode == 0, done.stderr
    url = f"{running.stack.http}/own"
    wait_until(lambda: requests.get(url, timeout=10).text == "own", 20, "the new location")
    assert running.stack.main_process("nginx-proxy") == master


def test_a_wrong_configuration_of_nginx_is_refused(running: Running) -> None:
    running.configuration.write_text("nonsense;\n")
    try:
        done = running.stack.command("reload", "nginx-proxy")
        assert done.returncode == 1
        assert 'unknown directive "nonsense"' in done.stdout + done.stderr
        assert requests.get(f"{running.stack.http}/?size=10", timeout=10).status_code == 200
    finally:
        running.configuration.write_text("")


def test_a_preloaded_app_cannot_be_reloaded() -> None:
    with launch("local", {"GUNICORN_PRELOAD_APP": "true"}) as stack:
        assert isinstance(stack, LocalStack)
        done = stack.command("reload", "flask-app")
    assert done.returncode == 1
    assert "GUNICORN_PRELOAD_APP" in done.stderr
