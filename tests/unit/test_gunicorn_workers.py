"""The metrics of a real gunicorn whose workers are stuck, die, or are replaced."""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gunicorn_workers  # noqa: F401  which replaces gunicorn's response
import pytest
import requests
from gunicorn.config import Config
from gunicorn.http import wsgi

from tests.gunicorns import (
    CONFIG,
    Gunicorn,
    gunicorn,
    idle_metrics,
    total,
    wait_for_metrics,
)
from tests.stacks import free_port, wait_until

IN_FLIGHT = "gunicorn_worker_requests_in_flight"
REQUESTS = "gunicorn_worker_requests_total"
BUSY = "gunicorn_worker_busy_seconds_total"
CPU = "gunicorn_worker_cpu_seconds_total"

NOBODY = 65534

# One gunicorn of each kind for all tests: pytest-xdist must run those of a kind in one process.
EVERY_KIND = [
    pytest.param(
        {"GUNICORN_WORKER_CLASS": worker_class, "GUNICORN_PRELOAD_APP": preload},
        id=f"{worker_class}-{preload}",
        marks=pytest.mark.xdist_group(f"gunicorn-{worker_class}-{preload}"),
    )
    for worker_class in ("gthread", "sync")
    for preload in ("false", "true")
]


of_every_kind = pytest.mark.parametrize("every_kind", EVERY_KIND, indirect=True, scope="module")


@pytest.fixture(scope="module")
def every_kind(request: pytest.FixtureRequest) -> Iterator[Gunicorn]:
    with gunicorn(GUNICORN_WORKERS="2", GUNICORN_THREADS="2", **request.param) as running:
        yield running


@pytest.fixture
def running() -> Iterator[Gunicorn]:
    settings = {"GUNICORN_WORKERS": "2", "GUNICORN_THREADS": "2", "GUNICORN_GRACEFUL_TIMEOUT": "9"}
    with gunicorn(**settings) as running:
        yield running


def exits(metrics: dict[str, float]) -> dict[str, float]:
    name = "gunicorn_worker_exits_total"
    return {reason: metrics[f'{name}{{reason="{reason}"}}'] for reason in
            ("exit", "timeout", "signal")}  # fmt: skip


def slots(metrics: dict[str, float], name: str) -> set[str]:
    prefix = f'{name}{{worker="'
    return {series[len(prefix) : -2] for series in metrics if series.startswith(prefix)}


def assert_counters_continued(before: dict[str, float], after: dict[str, float]) -> None:
    for series, value in before.items():
        if series.partition("{")[0].endswith(("_total", "_count", "_sum", "_bucket")):
            assert after[series] >= value, series


def replaced(running: Gunicorn, old: dict[str, int]) -> bool:
    # By the processes: an old worker can still answer after a test has removed its slot.
    ended = not set(running.children()) & set(old.values())
    return ended and len(running.workers()) == len(old)


def waiting_to_be_accepted(running: Gunicorn) -> int:
    """Return the backlog from the kernel's table of sockets."""
    address = f"0100007F:{int(running.url.rpartition(':')[2]):04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines():
        _, local, _, state, queues, *_ = line.split()
        if (local, state) == (address, "0A"):
            return int(queues.partition(":")[2], 16)
    raise LookupError(address)


@of_every_kind
def test_saturated_workers_have_every_thread_in_flight_and_a_backlog(every_kind: Gunicorn) -> None:
    running, idle = every_kind, idle_metrics(every_kind)
    places = int(idle["gunicorn_workers"] * idle["gunicorn_worker_threads"])
    backlog = f'gunicorn_listen_backlog{{listener="{running.url.removeprefix("http://")}"}}'
    assert idle[backlog] == 0

    with running.held_requests(places + 7):
        wait_for_metrics(
            running,
            lambda metrics: total(metrics, IN_FLIGHT) == places and metrics[backlog] == 7,
            "every thread is at a request, and all others wait",
        )
        waiting = waiting_to_be_accepted(running)
        times, busy = [], []
        while not busy or busy[-1] < busy[0] + 0.5:
            times.append(time.monotonic())
            later = running.metrics()
            times.append(time.monotonic())
            busy.append(total(later, BUSY) / places)
        assert waiting == later[backlog] == waiting_to_be_accepted(running)
        assert total(later, IN_FLIGHT) == places
        # The least and the most time that can lie between the first scrape and the last.
        assert times[-2] - times[1] <= busy[-1] - busy[0] <= times[-1] - times[0]

    over = wait_for_metrics(
        running, lambda metrics: total(metrics, REQUESTS) == total(idle, REQUESTS) + places + 7, ""
    )
    assert over[backlog] == 0
    idle_metrics(running)


def test_idle_connections_do_not_use_up_threads() -> None:
    with gunicorn(GUNICORN_WORKERS="1", GUNICORN_THREADS="4") as running, ExitStack() as sessions:
        # All of them are answered at the same time, so that gunicorn keeps all of them open.
        idle = [sessions.enter_context(requests.Session()) for _ in range(4)]
        with running.held_requests(4, [session.get for session in idle]):
            wait_for_metrics(running, lambda m: total(m, IN_FLIGHT) == 4, "4 in flight")
        idle_metrics(running)
        with running.held_requests(4):
            wait_for_metrics(running, lambda m: total(m, IN_FLIGHT) == 4, "4 others in flight")


def test_connection_stays_usable_after_an_unread_body() -> None:
    with gunicorn(GUNICORN_WORKERS="1") as running:
        connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=30)
        with contextlib.closing(connection):
            for _ in range(5):
                connection.request("POST", "/", body=b"x" * 500_000)
                response = connection.getresponse()
                response.read()
                assert (response.status, response.will_close) == (405, False)


@pytest.mark.parametrize(
    ("method", "length", "more", "connection"),
    [
        ("GET", "12", [("ETag", '"a"')], b"keep-alive"),
        ("HEAD", "12", [("ETag", '"a"')], b"close"),
        ("GET", "0", [("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT")], b"close"),
        # nginx cannot renew these.
        ("HEAD", "12", [], b"keep-alive"),
        ("POST", "0", [], b"keep-alive"),
    ],
)
def test_answer_without_a_body_that_nginx_may_renew_closes_its_connection(
    method: str, length: str, more: list[tuple[str, str]], connection: bytes
) -> None:
    """nginx reads `Connection` in the cached answer when a 304 renews it."""
    with all_sent(method) as (response, sent):
        response.start_response("200 OK", [("Content-Length", length), *more])
        response.close()
        assert b"\r\nConnection: %s\r\n" % connection in sent()
        assert response.should_close() == (connection == b"close")


@pytest.mark.parametrize(
    ("method", "parts", "expected"),
    [
        ("GET", [b"Hello ", b"World!"], [rb"\r\n\r\nHello $", rb"^World!$"]),
        # An empty first part sends the headers alone.
        ("GET", [b"", b"Hello World!"], [rb"\r\n\r\n$", rb"^Hello World!$"]),
        ("HEAD", [b"Hello World!"], [rb"\r\n\r\n$"]),
    ],
)
def test_headers_and_body_are_sent_together(
    method: str, parts: list[bytes], expected: list[bytes]
) -> None:
    """Else nginx's client would get half an answer if the worker is killed in between."""
    with all_sent(method) as (response, sent):
        response.start_response("200 OK", [("Content-Length", "12")])
        for part in parts:
            response.write(part)
        response.close()
        for pattern in expected:
            assert re.search(pattern, sent())


def test_body_that_is_no_bytes_sends_no_headers() -> None:
    """So gunicorn can still answer with 500."""
    with all_sent("GET") as (response, _):
        response.start_response("200 OK", [("Content-Length", "12")])
        with pytest.raises(TypeError):
            response.write("Hello World!")
        assert not response.headers_sent


@contextlib.contextmanager
def all_sent(method: str) -> Iterator[tuple[wsgi.Response, Callable[[], bytes]]]:
    """A response of gunicorn's, and a function that receives what one call of send() sent."""
    request = SimpleNamespace(method=method, version=(1, 1), should_close=lambda: False)
    server, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server, client:
        client.setblocking(False)
        yield wsgi.Response(request, server, Config()), partial(client.recv, 1000)


def test_clients_that_do_not_close_their_connections_delay_no_others() -> None:
    with gunicorn(GUNICORN_WORKERS="1") as running, ExitStack() as clients:
        host, _, port = running.url.removeprefix("http://").partition(":")
        refused = []
        for _ in range(20):  # gunicorn's own worker would wait two seconds for each
            client = clients.enter_context(socket.create_connection((host, int(port)), timeout=30))
            client.sendall(b"BAD REQUEST\r\n\r\n")
            refused.append(client)
        assert requests.get(running.url, timeout=20).ok
        assert all(client.recv(12) == b"HTTP/1.1 400" for client in refused)


@of_every_kind
def test_memory_and_cpu_equal_those_in_proc(every_kind: Gunicorn) -> None:
    for _ in range(50):
        every_kind.get()
    metrics = every_kind.metrics()
    workers = every_kind.workers()
    assert len(workers) == 2
    for slot, pid in workers.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        labels = f'{{worker="{slot}"}}'
        memory = metrics[f"gunicorn_worker_resident_memory_bytes{labels}"]
        assert memory == pytest.approx(resident * os.sysconf("SC_PAGE_SIZE"), rel=0.05)
        cpu_seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        assert metrics[CPU + labels] == pytest.approx(cpu_seconds, abs=0.05)
        started = metrics[f"gunicorn_worker_start_time_seconds{labels}"]
        assert time.time() - 120 < started < time.time()


@of_every_kind
def test_flask_and_workers_count_the_same_requests(every_kind: Gunicorn) -> None:
    before = idle_metrics(every_kind)
    for path in ["/"] * 5 + ["/nothing-here", "/?status=503", "/flask-health-check"]:
        every_kind.get(path)
    after = wait_for_metrics(
        every_kind, lambda metrics: total(metrics, REQUESTS) == total(before, REQUESTS) + 7, ""
    )
    assert total(after, "flask_http_request_total") == total(after, REQUESTS)
    assert total(after, "flask_http_request_duration_seconds_count") == total(after, REQUESTS)
    assert after['flask_http_request_total{method="GET",route="unmatched",status="404"}'] == 1
    assert after['flask_http_request_total{method="GET",route="/",status="503"}'] == 1
    assert not any("flask-health-check" in series for series in after)


def test_worker_killed_under_load_leaves_nothing_in_flight(running: Gunicorn) -> None:
    with running.held_requests(4) as answers:
        before = wait_for_metrics(running, lambda m: total(m, IN_FLIGHT) == 4, "4 in flight")
        old = running.workers()
        os.kill(old["1"], signal.SIGKILL)
        after = wait_for_metrics(running, lambda m: exits(m)["signal"] == 1, "the exit is counted")
        assert total(after, IN_FLIGHT) == 2
        wait_until(lambda: running.workers().get("1", old["1"]) != old["1"], 10, "a replacement")
    lost = [
        answer for answer in answers if isinstance(answer.exception(), requests.RequestException)
    ]
    assert len(lost) == 2
    last = wait_for_metrics(
        running, lambda m: total(m, REQUESTS) == total(before, REQUESTS) + 2, ""
    )
    assert total(last, IN_FLIGHT) == 0
    assert exits(last) == {"exit": 0, "timeout": 0, "signal": 1}
    assert_counters_continued(before, after)
    assert_counters_continued(after, last)


def test_stuck_sync_worker_counts_as_timeout() -> None:
    settings = {"GUNICORN_WORKER_CLASS": "sync", "GUNICORN_WORKERS": "1", "GUNICORN_TIMEOUT": "1"}
    with gunicorn(**settings) as running, running.held_requests(1):
        metrics = wait_for_metrics(running, lambda m: exits(m)["timeout"] == 1, "the timeout")
        assert exits(metrics) == {"exit": 0, "timeout": 1, "signal": 0}
        status_500 = 'flask_http_request_total{method="GET",route="unmatched",status="500"}'
        assert metrics[status_500] == 1  # the worker counts it before it ends


def test_stopped_gthread_worker_counts_as_timeout() -> None:
    with gunicorn(GUNICORN_WORKERS="1", GUNICORN_TIMEOUT="2") as running:
        os.kill(running.workers()["1"], signal.SIGSTOP)
        metrics = wait_for_metrics(running, lambda m: exits(m)["timeout"] == 1, "the timeout")
        assert exits(metrics) == {"exit": 0, "timeout": 1, "signal": 0}


def test_reloaded_workers_share_no_slot_and_the_slots_stay_bounded(running: Gunicorn) -> None:
    first = running.workers()
    assert set(first) == {"1", "2"}
    for _ in range(5):
        running.get()
    idle_metrics(running)
    with running.held_requests(2):
        before = wait_for_metrics(running, lambda m: total(m, IN_FLIGHT) == 2, "2 in flight")
        running.signal(signal.SIGHUP)
        both = wait_until(lambda: _at_least(running, 3), 10, "old and new side by side")
        assert len(set(both.values())) == len(both)
    second = wait_until(lambda: replaced(running, first) and running.workers(), 15, "new workers")
    after = wait_for_metrics(running, lambda m: exits(m)["exit"] == 2, "the exits are counted")
    assert exits(after) == {"exit": 2, "timeout": 0, "signal": 0}
    assert slots(after, IN_FLIGHT) == set(second)
    assert_counters_continued(before, after)

    running.signal(signal.SIGHUP)
    wait_until(lambda: replaced(running, second), 15, "workers of the second reload")
    last = wait_for_metrics(running, lambda m: exits(m)["exit"] == 4, "their exits")
    assert slots(last, REQUESTS) <= {"1", "2", "3", "4"}
    assert_counters_continued(after, last)


def _at_least(running: Gunicorn, count: int) -> dict[str, int]:
    workers = running.workers()
    return workers if len(workers) >= count else {}


def test_recycled_workers_continue_the_counts_of_their_slots() -> None:
    # Without keep-alive, a worker does not wait for idle connections before it ends.
    settings = {"GUNICORN_MAX_REQUESTS": "4", "GUNICORN_KEEPALIVE": "0"}
    with gunicorn(GUNICORN_WORKERS="1", **settings) as running:
        already = total(idle_metrics(running), REQUESTS)
        files = {file.name for file in running.counts.iterdir()}
        answered = 0
        while exits(running.metrics())["exit"] < 2:
            answered += running.get().ok
        metrics = wait_for_metrics(
            running, lambda m: total(m, REQUESTS) == already + answered, "every request counted"
        )
        assert total(metrics, "flask_http_request_total") == already + answered
        assert slots(metrics, REQUESTS) == {"1"}
        assert {file.name for file in running.counts.iterdir()} == files
        assert exits(metrics)["timeout"] == exits(metrics)["signal"] == 0


def test_gauges_of_a_dead_worker_disappear(running: Gunicorn) -> None:
    running.signal(signal.SIGTTOU)
    metrics = wait_for_metrics(running, lambda m: exits(m)["exit"] == 1, "one worker less")
    assert metrics["gunicorn_workers"] == metrics["gunicorn_workers_configured"] == 1
    (alive,) = running.workers()
    for name in (IN_FLIGHT, "gunicorn_worker_resident_memory_bytes"):
        assert slots(metrics, name) == {alive}
    assert slots(metrics, REQUESTS) == slots(metrics, CPU) == {"1", "2"}
    assert not list(running.counts.glob(f"gauge_*_{3 - int(alive)}.db"))

    running.signal(signal.SIGTTIN)
    metrics = wait_for_metrics(running, lambda m: m["gunicorn_workers"] == 2, "one worker more")
    assert metrics["gunicorn_workers_configured"] == 2
    assert slots(metrics, IN_FLIGHT) == {"1", "2"}


def test_each_of_many_workers_has_its_own_slot() -> None:
    with gunicorn(GUNICORN_WORKERS="8") as running:
        assert slots(running.metrics(), IN_FLIGHT) == {str(slot) for slot in range(1, 9)}
        with running.held_requests(16):
            wait_for_metrics(running, lambda m: total(m, IN_FLIGHT) == 16, "16 in flight")


def test_killed_metrics_server_is_replaced(running: Gunicorn) -> None:
    before, first = running.metrics(), running.metrics_server()
    second = replace_metrics_server(running, first)
    replace_metrics_server(running, second)
    assert_counters_continued(before, running.metrics())


def replace_metrics_server(running: Gunicorn, old: int) -> int:
    os.kill(old, signal.SIGKILL)
    return wait_until(
        lambda: running.metrics_server() != old and running.metrics_server(), 30, "a new server"
    )


def test_reload_to_another_address_is_followed(tmp_path: Path) -> None:
    ours, bind = tmp_path / "gunicorn.conf.py", tmp_path / "bind"
    first, second = (f"127.0.0.1:{free_port()}" for _ in range(2))
    ours.write_text(f"{CONFIG.read_text()}\nbind = open({str(bind)!r}).read()\n")
    bind.write_text(first)
    with gunicorn(ours, GUNICORN_WORKERS="1", GUNICORN_BIND=first) as running:
        backlog = f'gunicorn_listen_backlog{{listener="{second}"}}'
        running.url = f"http://{second}"
        bind.write_text(second)
        running.signal(signal.SIGHUP)
        metrics = wait_for_metrics(running, lambda m: backlog in m, "the other address")
        assert not any(first in series for series in metrics)
        with running.held_requests(int(metrics["gunicorn_worker_threads"]) + 3):
            wait_for_metrics(running, lambda m: m[backlog] == 3, "the backlog there")


def test_metrics_server_ends_with_a_killed_arbiter(running: Gunicorn) -> None:
    server = running.metrics_server()
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not _is_alive(server), 10, "the metrics server has ended")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_gunicorn_and_its_metrics_survive_the_removal_of_their_directory(running: Gunicorn) -> None:
    old = running.workers()
    shutil.rmtree(running.counts)
    running.signal(signal.SIGHUP)
    wait_until(
        lambda: running.counts.exists() and replaced(running, old), 20, "workers that count again"
    )
    assert running.get().ok
    metrics = wait_for_metrics(running, lambda m: total(m, REQUESTS) == 1, "the request")
    assert metrics["gunicorn_workers_configured"] == 2
    assert running.process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give workers another user")
def test_workers_of_another_user_are_measured(tmp_path: Path) -> None:
    ours = tmp_path / "gunicorn.conf.py"
    # Other users may not be able to read root's Python: root imports everything beforehand.
    user = f"user = group = {NOBODY}"
    ours.write_text(f"{CONFIG.read_text()}\nimport encodings.idna\n{user}\n")
    settings = {"GUNICORN_WORKERS": "1", "PROMETHEUS_MULTIPROC_DIR": ""}  # the default directory
    with gunicorn(ours, **settings) as running:
        already = total(idle_metrics(running), REQUESTS)
        running.get()
        wait_for_metrics(running, lambda m: total(m, REQUESTS) == already + 1, "the request")
        running.stop()  # removes that directory


def test_request_that_another_hook_refuses_is_not_counted_as_busy_time(tmp_path: Path) -> None:
    ours = tmp_path / "gunicorn.conf.py"
    ours.write_text(
        f"""{CONFIG.read_text()}
import gunicorn_flask_telemetry.hooks

def pre_request(worker, req):
    if req.path == "/refused":
        raise PermissionError("refused")
    gunicorn_flask_telemetry.hooks.pre_request(worker, req)
"""
    )
    with gunicorn(ours, GUNICORN_WORKERS="1") as running:
        before = idle_metrics(running)
        for _ in range(6):
            with contextlib.suppress(requests.ConnectionError):
                running.get("/refused")
        after = wait_for_metrics(
            running, lambda m: running.get().ok and total(m, IN_FLIGHT) == 0, "an answer"
        )
        assert total(after, BUSY) - total(before, BUSY) < 5
        assert after["gunicorn_workers"] == 1


def test_upgrade_by_usr2_is_refused_and_gunicorn_continues(running: Gunicorn) -> None:
    running.get()
    workers, before = running.workers(), idle_metrics(running)
    running.signal(signal.SIGUSR2)
    wait_until(
        lambda: "USR2 refused" in running.log_file.read_text(),
        20,
        "the refusal",
    )
    running.get()
    name = "flask_http_request_total"
    after = wait_for_metrics(running, lambda m: total(m, name) > total(before, name), "the count")
    assert running.workers() == workers
    assert_counters_continued(before, after)
    assert running.process.poll() is None


def test_a_stop_answers_or_refuses_every_connection(running: Gunicorn) -> None:
    """nginx sends a POST again if its connection was refused, but not if it was reset."""
    address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers: list[bytes] = []

    def ask_until_refused() -> None:
        while True:
            try:
                connection = socket.create_connection(address, timeout=10)
            except ConnectionRefusedError:
                return
            with connection:
                try:
                    connection.sendall(request)
                    answers.append(connection.recv(100)[:12])
                except ConnectionResetError:
                    answers.append(b"reset")

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask_until_refused) for _ in range(8)]
        wait_until(lambda: len(answers) > 100, 30, "answers")
        running.signal(signal.SIGTERM)
    for client in clients:
        client.result()
    assert set(answers) == {b"HTTP/1.1 200"}
