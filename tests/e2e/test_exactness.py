"""Every request is counted once, even if services reload, restart or are killed meanwhile.

These tests share a stack whose four nginx workers write one log.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import secrets
import signal
import socket
import string
import threading
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import requests

from tests.load import busy_machine
from tests.stacks import ComposeStack, LocalStack, Stack, launch, wait_for_in_flight, wait_until

EXPORTER = "nginx-access-exporter"
REQUESTS = "nginx_route_requests_total"
MALFORMED = "nginx_access_exporter_malformed_lines_total"
SERVED = "nginx_http_requests_total"
LOG = "/var/log/nginx-metrics/access.log"
ENOUGH = 200_000
CONNECTIONS = 8
# Many, since nginx with tcp_nopush delays pipelined answers by 40 ms.
PIPELINED = 200
ANSWER = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def four_workers(kind: str) -> Iterator[Stack]:
    with launch(kind, {"NGINX_WORKER_PROCESSES": "4"}) as stack:
        yield stack


class Traffic:
    """Clients that request one URL without a pause, and count the answers that they get.

    Requests are pipelined. nginx closes a connection only between two answers, so it logs every
    answer that has begun.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        target = f"{parts.path}?{parts.query}"
        self._request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._answers = [0] * CONNECTIONS
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(CONNECTIONS)
        ]
        self.failures: list[bytes] = []

    @property
    def answers(self) -> int:
        """How many answers came so far."""
        return sum(self._answers)

    def __enter__(self) -> Traffic:  # noqa: D105
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:  # noqa: D105
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def more(self) -> None:
        """Wait for a fifth of ENOUGH answers."""
        enough = self.answers + ENOUGH // 5
        wait_until(lambda: self.answers >= enough or self.failures, 180, "more answers")
        assert self.failures == []

    def _ask(self, number: int) -> None:
        while not self._stopped.wait(0.01):
            # nginx is down for a moment, or its old workers close their connections.
            with (
                contextlib.suppress(OSError),
                socket.create_connection(self._address, timeout=60) as connection,
            ):
                while not self._stopped.is_set() and self._ask_and_read(connection, number):
                    pass

    def _ask_and_read(self, connection: socket.socket, number: int) -> bool:
        """Send some requests and count the answers; false if nginx closed the connection."""
        connection.sendall(self._request * PIPELINED)
        text = b""
        try:
            while text.count(ANSWER) < PIPELINED:
                received = connection.recv(1 << 18)
                if not received:
                    return False
                text += received
            return True
        finally:
            self._answers[number] += text.count(ANSWER)
            self.failures += re.findall(rb"HTTP/1\.1 (?!200)\d{3}", text)


def allocated(stack: Stack) -> int:
    """Bytes of memory or disk that nginx's metrics log takes."""
    if isinstance(stack, ComposeStack):
        program = f"import os; print(os.stat({LOG!r}).st_blocks)"
        return 512 * int(stack.compose("exec", "-T", EXPORTER, "python3", "-c", program))
    assert isinstance(stack, LocalStack)
    return 512 * (stack.run / "nginx" / "access-metrics.log").stat().st_blocks


def kill_exporter(stack: Stack) -> None:
    """Send SIGKILL, and wait until the exporter runs again."""
    killed = stack.main_process(EXPORTER)
    stack.kill(EXPORTER, signal.SIGKILL)
    if isinstance(stack, ComposeStack):
        stack.start(EXPORTER)  # after `docker kill`, the engine does not restart a container
    wait_until(lambda: stack.main_process(EXPORTER) not in (0, killed), 20, "a new exporter")
    wait_until(lambda: stack.metrics(EXPORTER), 20, "its metrics")


def value(stack: Stack, expression: str) -> float | None:
    """The only sample of an expression, None as long as there is none."""
    samples = stack.query(expression)
    return samples[0]["value"] if samples else None


def test_prometheus_computes_the_known_hit_ratio(four_workers: Stack) -> None:
    """On a new stack, so that this traffic creates the series."""
    stack = four_workers
    wait_until(
        lambda: stack.query(f'up{{job="{EXPORTER}"}} == 1'), 30, "a first scrape of the exporter"
    )
    run = uuid.uuid4().hex
    with requests.Session() as client:
        for entry in range(10):
            for expected in ("MISS", *["HIT"] * 6):
                response = client.get(f"{stack.http}/cache-me?run={run}&entry={entry}", timeout=10)
                assert response.headers["X-Cache-Status"] == expected
        client.get(f"{stack.http}/", timeout=10)

    select = '{route="/cache-me"}'
    wait_until(lambda: value(stack, f"sum({REQUESTS})") == 71, 60, "a scrape of all")
    # The last evaluation may be from before that scrape.
    wait_until(
        lambda: (
            value(stack, f"route:nginx_cache_hit:ratio_rate5m{select}")
            == pytest.approx(60 / 70, rel=1e-9)
        ),
        30,
        "a hit ratio of 6 in 7",
    )
    miss_ratio = value(stack, f"route:nginx_cache_miss:ratio_rate5m{select}")
    assert miss_ratio == pytest.approx(10 / 70, rel=1e-9)
    assert stack.query('route:nginx_cache_hit:ratio_rate5m{route="/"}') == []


def test_a_full_log_loses_lines_but_no_answers_and_metrics_show_it(four_workers: Stack) -> None:
    """On a busy machine, where everything is late.

    Runs before the tests that restart nginx: a restart loses its counts since the last scrape.
    """
    stack = four_workers
    if not isinstance(stack, ComposeStack):
        pytest.skip("a local stack's log is on the machine's own disk")

    def in_container(script: str) -> None:
        stack.compose("exec", "-T", "nginx-proxy", "sh", "-c", script)

    def log_is_full() -> bool:
        return "No space left on device" in stack.logs("nginx-proxy")

    # Requests before a counter's first scrape would not count as an increase, nor as a loss.
    wait_until(lambda: stack.query(SERVED), 60, "a scrape of nginx's count")
    ballast = LOG.replace("access.log", "ballast")
    in_container(f"dd if=/dev/zero of={ballast} bs=1M 2>/dev/null || true")
    before = stack.total(EXPORTER, REQUESTS)
    url = f"{stack.http}/cache-me?entry={uuid.uuid4().hex}"
    with busy_machine():
        with Traffic(url) as traffic:
            traffic.more()
        wait_until(log_is_full, 60, "a full log")
        in_container(f"rm {ballast}")
        served = stack.total("nginx-exporter", SERVED)
        wait_until(lambda: (value(stack, SERVED) or 0) >= served, 60, "a scrape of all")
        unaccounted = "job:nginx_requests_unaccounted:rate5m"
        wait_until(lambda: (value(stack, unaccounted) or 0) > 1, 60, "the loss to show")
    counted = stack.total(EXPORTER, REQUESTS)
    assert counted < before + traffic.answers

    # The exporter still counts: nginx's next line, or, if that continues half a line, the second.
    for _ in range(10):
        assert requests.get(url, timeout=10).status_code == 200
    wait_until(lambda: stack.total(EXPORTER, REQUESTS) >= counted + 9, 30, "the next lines")
    kill_exporter(stack)
    assert stack.total(EXPORTER, REQUESTS) >= counted + 9


def test_no_request_is_lost_or_counted_twice(four_workers: Stack) -> None:
    """200,000 requests and more, through reloads, restarts and kills."""
    stack = four_workers
    before, malformed = stack.total(EXPORTER, REQUESTS), stack.total(EXPORTER, MALFORMED)
    with Traffic(f"{stack.http}/cache-me?entry={uuid.uuid4().hex}") as traffic:
        traffic.more()
        stack.kill("nginx-proxy", signal.SIGHUP)
        traffic.more()
        stack.restart(EXPORTER)
        traffic.more()
        kill_exporter(stack)
        traffic.more()
        stack.restart("nginx-proxy")
        traffic.more()
    assert traffic.failures == []
    assert traffic.answers >= ENOUGH

    def counted() -> float:
        return stack.total(EXPORTER, REQUESTS) - before

    wait_until(lambda: counted() >= traffic.answers, 60, "every answer to be counted")
    assert counted() == traffic.answers
    assert stack.total(EXPORTER, MALFORMED) == malformed
    assert allocated(stack) < 8_000_000
    assert stack.total(EXPORTER, "process_resident_memory_bytes") < 64_000_000

    # Counters continued from their values, so Prometheus sees no reset.
    total = before + traffic.answers
    wait_until(lambda: value(stack, f"sum({REQUESTS})") == total, 60, "a scrape of all")
    assert value(stack, f"sum(resets({REQUESTS}[10m]))") == 0


def test_a_flood_of_paths_methods_and_headers_adds_no_series(four_workers: Stack) -> None:
    stack = four_workers

    def series() -> set[str]:
        metrics = stack.metrics(EXPORTER).splitlines()
        return {line.rpartition(" ")[0] for line in metrics if line.startswith("nginx_")}

    def flood() -> set[str]:
        """The series after 100 requests that have nothing in common."""
        before = stack.total(EXPORTER, REQUESTS)
        with requests.Session() as client:
            for _ in range(100):
                word = "".join(secrets.choice(string.ascii_uppercase) for _ in range(20))
                headers = {"X-Route": f"/{word}", f"X-{word}": word, "User-Agent": word}
                client.request(word, f"{stack.http}/{word}?{word}", headers=headers, timeout=10)
        wait_until(lambda: stack.total(EXPORTER, REQUESTS) == before + 100, 30, "100 requests")
        return series()

    before = series()
    after = flood()
    new = "".join(after - before)
    assert set(re.findall(r'route="([^"]*)"', new)) == {"unmatched"}
    assert set(re.findall(r'method="([^"]*)"', new)) == {"OTHER"}
    assert flood() == after


def test_failed_and_abandoned_upstream_requests_are_counted_by_attempt(
    four_workers: Stack,
) -> None:
    stack = four_workers

    def counted(name: str, **labels: str) -> float:
        return stack.total(EXPORTER, f"nginx_route_{name}_total", route="none", **labels)

    address = urlsplit(stack.http)
    with contextlib.ExitStack() as clients:
        for _ in range(3):
            client = socket.create_connection((address.hostname, address.port), timeout=60)
            clients.enter_context(client).sendall(b"GET /?sleep=15 HTTP/1.0\r\n\r\n")
        wait_for_in_flight(stack, 3)  # left earlier, a request might not have reached Flask
    wait_until(lambda: counted("requests", status="499") == 3, 30, "three requests abandoned")
    assert counted("upstream_attempts", status="none") == 3

    stack.stop("flask-app")
    try:
        health_check = requests.get(f"{stack.http}/flask-health-check", timeout=20)
        assert health_check.status_code in (502, 504)  # and is not counted
        with concurrent.futures.ThreadPoolExecutor() as pool:  # each waits for some seconds
            answers = pool.map(lambda _: requests.get(stack.http, timeout=30), range(5))
            statuses = {answer.status_code for answer in answers}
    finally:
        stack.start("flask-app")
    assert statuses <= {502, 504}
    wait_until(lambda: counted("requests") == 3 + 5, 30, "five failed requests")
    failed = counted("upstream_attempts", status="502") + counted("upstream_attempts", status="504")
    assert failed >= 5
