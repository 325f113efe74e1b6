"""Workers in a whole stack: saturated, killed, hanging and replaced."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.gunicorns import METRICS_SERVER
from tests.stacks import Process, Stack, launch, wait_until

WORKERS, THREADS = 2, 2
SETTINGS = {
    "GUNICORN_WORKERS": str(WORKERS),
    "GUNICORN_THREADS": str(THREADS),
    "GUNICORN_TIMEOUT": "15",  # on a busy machine, a worker took more than 5 s to boot
    "GUNICORN_GRACEFUL_TIMEOUT": "5",
    "GUNICORN_MAX_REQUESTS": "40",
}
IN_FLIGHT = "gunicorn_worker_requests_in_flight"
REQUESTS = "gunicorn_worker_requests_total"
EXITS = "gunicorn_worker_exits_total"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def small(kind: str) -> Iterator[Stack]:
    """A stack with few workers, short timeouts and frequent recycling."""
    with launch(kind, SETTINGS) as running:
        yield running


@pytest.fixture(autouse=True)
def idle_afterwards(small: Stack) -> Iterator[None]:
    """Check after each test that all workers are idle and that no counter went back."""
    before = scrape(small)
    yield
    wait_until(
        lambda: total(scrape(small), IN_FLIGHT) == 0 and len(workers(small)) == WORKERS,
        30,
        "all workers alive and no request in flight",
    )
    after = scrape(small)
    for (name, labels), value in before.items():
        if name.endswith(("_total", "_count", "_sum", "_bucket")):
            assert after[name, labels] >= value, (name, labels)
    slots = {dict(labels)["worker"] for name, labels in after if name == REQUESTS}
    assert slots <= {str(slot) for slot in range(1, 2 * WORKERS + 1)}


def scrape(stack: Stack) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(stack.metrics("flask-app"))
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    wanted = labels.items()
    return sum(v for (sample, has), v in samples.items() if sample == name and wanted <= has)


def workers(stack: Stack) -> list[Process]:
    arbiter, *others = stack.processes("flask-app")
    return [
        process
        for process in others
        if process.parent == arbiter.pid and METRICS_SERVER not in process.command
    ]


@contextlib.contextmanager
def load(stack: Stack, path: str, clients: int) -> Iterator[Callable[[], int]]:
    """Send requests as fast as they are answered; yield a function that counts the answers."""
    ended, answered = threading.Event(), []

    def ask_until_ended() -> None:
        while not ended.is_set():
            answered.append(requests.get(stack.http + path, timeout=60).status_code)

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask_until_ended) for _ in range(clients)]
        try:
            yield lambda: answered.count(requests.codes.ok)
        finally:
            ended.set()
    for client in asking:
        client.result()


@contextlib.contextmanager
def counted_to_the_last_request(stack: Stack, clients: int, seconds: float = 0.1) -> Iterator[None]:
    """Check that workers and Flask count every request that was answered, under load."""
    before = scrape(stack)
    with load(stack, f"/?sleep={seconds}", clients) as answered:
        yield
    for name in (REQUESTS, "flask_http_request_total"):
        wait_until(
            lambda name=name: total(scrape(stack), name) - total(before, name) == answered(),
            10,
            f"{name} to have grown by the {answered()} requests answered",
        )


@contextlib.contextmanager
def more_exits(stack: Stack, **expected: int) -> Iterator[None]:
    """Wait for at least these exits by reason, and check that there are none for other reasons.

    Load recycles workers, so any number of further exits may have the reason "exit".
    """
    before = scrape(stack)
    yield

    def grown() -> dict[str, float]:
        after = scrape(stack)
        return {
            reason: total(after, EXITS, reason=reason) - total(before, EXITS, reason=reason)
            for reason in ("exit", "timeout", "signal")
        }

    wait_until(
        lambda: all(grown()[reason] >= count for reason, count in expected.items()),
        60,
        f"{expected} more exits",
    )
    assert grown() | {"exit": 0} == {"exit": 0, "timeout": 0, "signal": 0} | expected | {"exit": 0}


def test_saturation_shows_in_the_metrics(small: Stack) -> None:
    places = WORKERS * THREADS
    with load(small, "/?sleep=2", 3 * places):
        wait_until(
            lambda: (
                total(samples := scrape(small), IN_FLIGHT) == places
                and total(samples, "gunicorn_listen_backlog") >= places
            ),
            20,
            "every thread busy, and a backlog",
        )
        busy = "sum(rate(gunicorn_worker_busy_seconds_total[12s]))"
        capacity = "sum(gunicorn_workers_configured * gunicorn_worker_threads)"
        wait_until(
            lambda: any(sample["value"] > 0.95 for sample in small.query(f"{busy} / {capacity}")),
            40,
            "Prometheus sees all workers busy",
        )
    wait_until(lambda: total(scrape(small), "gunicorn_listen_backlog") == 0, 10, "no backlog")
    queue = "gunicorn_request_queue_duration_seconds"
    samples = scrape(small)
    assert total(samples, f"{queue}_count") > total(samples, f"{queue}_bucket", le="1.0")


def test_killed_worker_counts_as_signal(small: Stack) -> None:
    # Slow requests and the newest worker: it must not be recycled before the signal arrives.
    with counted_to_the_last_request(small, WORKERS * THREADS, 1), more_exits(small, signal=1):
        wait_until(lambda: total(scrape(small), IN_FLIGHT) == WORKERS * THREADS, 10, "load")
        small.signal("flask-app", workers(small)[-1], signal.SIGKILL)


def test_hung_worker_counts_as_timeout(small: Stack) -> None:
    with counted_to_the_last_request(small, 1, 1), more_exits(small, timeout=1):
        small.signal("flask-app", workers(small)[-1], signal.SIGSTOP)


def test_reloaded_workers_count_as_exits(small: Stack) -> None:
    old = {worker.pid for worker in workers(small)}
    with counted_to_the_last_request(small, 3), more_exits(small, exit=WORKERS):
        small.kill("flask-app", signal.SIGHUP)
    wait_until(lambda: not old & {worker.pid for worker in workers(small)}, 20, "only new workers")


def test_recycled_workers_count_as_exits(small: Stack) -> None:
    with counted_to_the_last_request(small, WORKERS * THREADS), more_exits(small, exit=3):
        pass


def test_posts_with_unread_bodies_get_their_answers(small: Stack) -> None:
    """nginx does not retry a POST, so an unannounced close of the connection would be a 502."""
    bodies = (b"x" * 100_000 for _ in range(100))
    answers = [requests.post(small.http, data=body, timeout=60).status_code for body in bodies]
    assert set(answers) == {requests.codes.method_not_allowed}


def test_memory_and_cpu_equal_those_in_proc(small: Stack) -> None:
    memory = "gunicorn_worker_resident_memory_bytes"

    def agree() -> bool:
        samples = scrape(small)
        stats = [
            Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
            for worker in workers(small)
        ]
        resident = sorted(int(fields[21]) * os.sysconf("SC_PAGE_SIZE") for fields in stats)
        found = sorted(value for (sample, _), value in samples.items() if sample == memory)
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in stats)
        # The CPU time of a slot includes that of its earlier workers.
        cpu_seconds = total(samples, "gunicorn_worker_cpu_seconds_total")
        return (
            found == pytest.approx(resident, rel=0.05)
            and cpu_seconds >= ticks / os.sysconf("SC_CLK_TCK") - 0.1
        )

    # A worker that has just started may grow between the scrape and the reading of /proc.
    wait_until(agree, 20, "the metrics to be those of /proc")
