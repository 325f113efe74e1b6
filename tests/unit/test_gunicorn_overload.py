"""What gunicorn does while more requests come than its threads can serve."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from gunicorn_workers import TURN_SECONDS

from gunicorn_flask_telemetry.shedding import queue_timeout, reason_to_shed
from tests.gunicorns import Gunicorn, gunicorn, idle_metrics, total, wait_for_metrics
from tests.stacks import wait_until

# One gunicorn for all of them: pytest-xdist must run them in one process.
pytestmark = pytest.mark.xdist_group("gunicorn-overload")

IN_FLIGHT = "gunicorn_worker_requests_in_flight"
SHED = "gunicorn_requests_shed_total"
START_ERRORS = "gunicorn_request_start_errors_total"
QUEUE_COUNT = "gunicorn_request_queue_duration_seconds_count"
QUEUE_TIMEOUT = 1
THREADS = 4


@pytest.fixture(scope="module")
def running() -> Iterator[Gunicorn]:
    settings = {"GUNICORN_WORKERS": "1", "GUNICORN_THREADS": str(THREADS)}
    with gunicorn(GUNICORN_QUEUE_TIMEOUT=str(QUEUE_TIMEOUT), **settings) as started:
        yield started


def all_busy(running: Gunicorn) -> None:
    wait_for_metrics(running, lambda m: total(m, IN_FLIGHT) == THREADS, "all threads are busy")


def backlog(metrics: dict[str, float]) -> float:
    return total(metrics, "gunicorn_listen_backlog")


def shed(metrics: dict[str, float], route: str, reason: str) -> float:
    return metrics.get(f'{SHED}{{reason="{reason}",route="{route}"}}', 0)


def test_kept_connection_closes_if_others_wait(running: Gunicorn) -> None:
    """Otherwise nginx would use it again and again, and those in the backlog would wait forever."""
    with (
        requests.Session() as session,
        ThreadPoolExecutor(1) as pool,
        running.held_requests(THREADS - 1),
    ):
        with running.held_requests(1, [session.get]) as kept:
            all_busy(running)
        accepted = time.monotonic()  # at the latest
        assert kept[0].result().headers["Connection"] == "keep-alive"
        wait_for_metrics(running, lambda m: total(m, IN_FLIGHT) == THREADS - 1, "its count")
        with running.held_requests(1, [session.get]) as kept:
            all_busy(running)
            wait_until(lambda: time.monotonic() > accepted + TURN_SECONDS, 10, "its turn to end")
            other = pool.submit(running.get)
            wait_for_metrics(running, lambda m: backlog(m) == 1, "another request waits")
        assert kept[0].result().headers["Connection"] == "close"
        assert other.result().ok


@pytest.mark.parametrize(("path", "route"), [("/", "/"), ("/nothing-here", "unmatched")])
def test_request_that_waited_too_long_gets_503_at_once(
    running: Gunicorn, path: str, route: str
) -> None:
    before = idle_metrics(running)
    with ThreadPoolExecutor(1) as pool:
        with running.held_requests(THREADS):
            all_busy(running)
            waiting = pool.submit(running.get, f"{path}?raise=it-ran")
            wait_for_metrics(running, lambda m: backlog(m) == 1, "another request waits")
            waits_since = time.monotonic()
            wait_until(lambda: time.monotonic() > waits_since + QUEUE_TIMEOUT + 0.2, 10, "its end")
        response = waiting.result()
    assert response.status_code == requests.codes.service_unavailable
    assert response.headers["Retry-After"] == str(QUEUE_TIMEOUT)
    assert response.headers["X-Route"] == route
    after = idle_metrics(running)
    assert shed(after, route, "queue_timeout") == shed(before, route, "queue_timeout") + 1
    answered = "flask_http_request_total"
    assert total(after, answered) == total(before, answered) + THREADS  # not the one that waited
    line = wait_until(lambda: logged(running, f'"route":"{route}"', "shed"), 10, "its log line")
    assert '"status":503' in line
    assert '"shed":"queue_timeout"' in line
    assert not logged(running, "about to raise")


def logged(running: Gunicorn, *words: str) -> str:
    lines = running.log_file.read_text().splitlines()
    return next((line for line in lines if all(word in line for word in words)), "")


@pytest.mark.parametrize("body", [b"", b"x" * 20_000], ids=["no body", "a body"])
def test_app_does_not_run_for_a_client_that_left(running: Gunicorn, body: bytes) -> None:
    before = idle_metrics(running)
    host, _, port = running.url.removeprefix("http://").partition(":")
    with running.held_requests(THREADS):
        all_busy(running)
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /?raise=it-ran HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}"
            client.setblocking(False)
            client.send(head.encode() + b"\r\n\r\n" + body)
            wait_for_metrics(running, lambda m: backlog(m) == 1, "its request waits")
    name = "gunicorn_worker_requests_total"
    after = wait_for_metrics(
        running, lambda m: total(m, name) == total(before, name) + THREADS + 1, "all are over"
    )
    assert shed(after, "unmatched", "client_left") == shed(before, "unmatched", "client_left") + 1
    assert not logged(running, "about to raise")
    answered = "flask_http_request_total"
    assert total(after, answered) == total(before, answered) + THREADS


@pytest.mark.parametrize("ahead", [3600, -3600])
def test_wrong_clock_is_counted_and_refuses_nobody(running: Gunicorn, ahead: int) -> None:
    before = idle_metrics(running)
    started = f"{time.time() + ahead:.3f}"
    assert running.get(headers={"X-Request-Start": started}).ok
    after = idle_metrics(running)
    assert total(after, START_ERRORS) == total(before, START_ERRORS) + 1
    assert total(after, QUEUE_COUNT) == total(before, QUEUE_COUNT)
    assert total(after, SHED) == total(before, SHED)


def test_request_that_nginx_sends_again_has_not_waited_here(running: Gunicorn) -> None:
    """nginx does not renew X-Request-Start when it passes a request on to another replica."""
    started = f"{time.time() - 10 * QUEUE_TIMEOUT:.3f}"
    assert running.get(headers={"X-Request-Start": started}).ok


def test_waiting_until_the_application_is_ready_does_not_count() -> None:
    """Else a replica that starts slowly would refuse what came while it did."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
        listening.accept()[0] as ours,
    ):
        client.sendall(b"x")
        came, environ = time.monotonic(), {"gunicorn.socket": ours}
        wait_until(lambda: reason_to_shed(environ, 1) == "queue_timeout", 10, "a wait of 1 s")
        assert reason_to_shed(environ, 1, since=came + 1) is None


def test_unix_sockets_and_other_servers_shed_nothing() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert reason_to_shed({"gunicorn.socket": ours}, 1) is None
    assert reason_to_shed({}, 1) is None


def test_queue_timeout_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_QUEUE_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="GUNICORN_QUEUE_TIMEOUT='soon': must be a whole number"):
        queue_timeout()
