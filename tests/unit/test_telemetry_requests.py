"""The metrics and log lines of requests to a real gunicorn."""

import json
import os
import re
import time
from collections.abc import Iterator

import pytest
import requests

from gunicorn_flask_telemetry import __version__
from tests.gunicorns import Gunicorn, gunicorn, idle_metrics, total, wait_for_metrics
from tests.stacks import wait_until

# One gunicorn for all of them: pytest-xdist must run them in one process.
pytestmark = pytest.mark.xdist_group("gunicorn-requests")

QUEUE = "gunicorn_request_queue_duration_seconds"
COUNT = "flask_http_request_duration_seconds_count"


@pytest.fixture(scope="module")
def running() -> Iterator[Gunicorn]:
    with gunicorn(GUNICORN_WORKERS="2") as running:
        yield running


@pytest.fixture(scope="module")
def trusting_nobody() -> Iterator[Gunicorn]:
    with gunicorn(GUNICORN_WORKERS="1", FORWARDED_ALLOW_IPS="192.0.2.0/24") as running:
        yield running


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="runs under pytest-xdist only")
def test_pytest_xdist_runs_these_tests_in_one_process(request: pytest.FixtureRequest) -> None:
    """pytest 9.2 broke this without a message: each process started all stacks."""
    assert request.node.nodeid.endswith("@gunicorn-requests")


def difference(running: Gunicorn, ask: object) -> dict[str, float]:
    """Return what changed in the metrics after calling `ask` and counting one request more."""
    before = idle_metrics(running)
    ask()
    name = "gunicorn_worker_requests_total"
    after = wait_for_metrics(
        running, lambda m: total(m, name) == total(before, name) + 1, "the count"
    )
    changed = {series: value - before.get(series, 0) for series, value in after.items()}
    return {series: value for series, value in changed.items() if value}


def labels(route: str, status: int, method: str = "GET") -> str:
    return f'{{method="{method}",route="{route}",status="{status}"}}'


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", labels("/", 200)),
        ("HEAD", "/info", labels("/info", 200, "HEAD")),
        ("GET", "/nothing-here", labels("unmatched", 404)),
        ("POST", "/", labels("unmatched", 405, "POST")),
        ("BREW", "/", labels("unmatched", 405, "OTHER")),
        ("GET", "/?status=503", labels("/", 503)),
        ("GET", "/?raise=x", labels("/", 500)),
    ],
)
def test_request_is_counted_once(running: Gunicorn, method: str, path: str, expected: str) -> None:
    changed = difference(running, lambda: running.ask(method, path))
    for name in (COUNT, "flask_http_request_total"):
        counted = {s: v for s, v in changed.items() if s.partition("{")[0] == name}
        assert counted == {name + expected: 1}


def test_exception_is_answered_with_500_and_the_route(running: Gunicorn) -> None:
    answers = []
    changed = difference(running, lambda: answers.append(running.get("/cache-me?raise=x")))
    assert (answers[0].status_code, answers[0].headers["X-Route"]) == (500, "/cache-me")
    assert changed['flask_http_request_exceptions_total{method="GET",status="500"}'] == 1


def test_exception_in_the_middle_of_a_response_is_counted(running: Gunicorn) -> None:
    def ask() -> None:
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            running.get("/info?break=half")

    changed = difference(running, ask)
    assert changed['flask_http_request_exceptions_total{method="GET",status="200"}'] == 1
    assert changed["flask_http_request_total" + labels("/info", 200)] == 1


def test_duration_is_that_of_the_request(running: Gunicorn) -> None:
    changed = difference(running, lambda: running.get("/info?sleep=0.3"))
    assert 0.3 <= changed["flask_http_request_duration_seconds_sum" + labels("/info", 200)] < 3
    assert 0.3 <= total(changed, "gunicorn_worker_busy_seconds_total") < 3


def test_health_check_does_not_count_as_traffic(running: Gunicorn) -> None:
    def check_then_ask() -> None:
        running.get("/flask-health-check")
        running.get("/info", headers={"X-Request-ID": "after-the-check"})

    changed = difference(running, check_then_ask)
    assert total(changed, COUNT) == 1
    wait_until(lambda: line(running, "after-the-check"), 10, "the next request's line")
    assert "/flask-health-check" not in running.log_file.read_text()


def test_library_and_package_export_their_versions(running: Gunicorn) -> None:
    metrics = running.metrics()
    assert any(series.startswith("flask_exporter_info{version=") for series in metrics)
    (build,) = (s for s in metrics if s.startswith("gunicorn_flask_telemetry_build_info"))
    assert metrics[build] == 1
    revision = r'revision="([0-9a-f]{12}|unknown)"'
    assert re.search(f'{{{revision},version="{re.escape(__version__)}"}}$', build)


def test_queue_time_counts_from_the_proxys_start_header(running: Gunicorn) -> None:
    started = f"{time.time() - 2:.3f}"
    changed = difference(running, lambda: running.get(headers={"X-Request-Start": started}))
    assert changed[f"{QUEUE}_count"] == 1
    assert 2 <= changed[f"{QUEUE}_sum"] < 4


@pytest.mark.parametrize("start", ["", "soon", "nan", "-inf", "0", "1e400", "{future}", "{old}"])
def test_impossible_start_is_ignored(running: Gunicorn, start: str) -> None:
    start = start.format(future=time.time() + 60, old=time.time() - 3600)
    changed = difference(running, lambda: running.get(headers={"X-Request-Start": start}))
    assert f"{QUEUE}_count" not in changed


def test_start_is_optional(running: Gunicorn) -> None:
    assert f"{QUEUE}_count" not in difference(running, running.get)


def test_proxy_headers_of_an_untrusted_peer_are_dropped(trusting_nobody: Gunicorn) -> None:
    forged = {
        "X-Real-IP": "192.0.2.1",
        "X-Forwarded-For": "192.0.2.1",
        "X-Request-ID": "forged",
        "X-Request-Start": f"{time.time() - 2:.3f}",
    }
    answers = []
    changed = difference(
        trusting_nobody, lambda: answers.append(trusting_nobody.get("/info", headers=forged))
    )
    assert f"{QUEUE}_count" not in changed
    info = answers[0].json()
    assert info["connecting_ip"] == "127.0.0.1"
    assert info["proxy_ip"] is info["request_id"] is None


def test_proxy_headers_of_a_trusted_peer_are_kept(running: Gunicorn) -> None:
    info = running.get("/info", headers={"X-Real-IP": "192.0.2.1"}).json()
    assert info["connecting_ip"] == "192.0.2.1"


def line(running: Gunicorn, request_id: str) -> dict[str, object] | None:
    """Return the first log line with this request id."""
    lines = map(json.loads, running.log_file.read_text().splitlines())
    return next((fields for fields in lines if fields.get("request_id") == request_id), None)


def test_request_is_logged(running: Gunicorn) -> None:
    running.get("/info?x=secret", headers={"X-Request-ID": "to-be-logged"})
    fields = wait_until(lambda: line(running, "to-be-logged"), 10, "the line")
    assert fields["worker"] in {1, 2}
    assert (fields["method"], fields["path"], fields["route"]) == ("GET", "/info", "/info")
    assert (fields["status"], fields["level"]) == (200, "info")
    assert 0 < fields["duration"] < 10


def test_applications_own_lines_have_the_request_id(running: Gunicorn) -> None:
    running.get("/?raise=cheese", headers={"X-Request-ID": "failing"})
    fields = wait_until(lambda: line(running, "failing"), 10, "the line")
    assert (fields["message"], fields["level"]) == ("about to raise cheese", "warning")


def test_every_line_is_json(running: Gunicorn) -> None:
    for each in running.log_file.read_text().splitlines():
        fields = json.loads(each)
        assert {"time", "level", "logger", "message"} <= fields.keys()


def test_requests_are_not_logged_at_level_warning() -> None:
    with gunicorn(GUNICORN_WORKERS="1", GUNICORN_LOG_LEVEL="warning") as running:
        running.get("/?raise=cheese", headers={"X-Request-ID": "failing"})
        wait_until(lambda: line(running, "failing"), 10, "the warning")
        running.stop()  # writes the lines that wait
        loggers = {json.loads(each)["logger"] for each in running.log_file.read_text().splitlines()}
        assert "request" not in loggers
