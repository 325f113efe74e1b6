"""Thousands of hostile requests through nginx: nothing crashes, fails, grows or is miscounted.

The short form is part of every run of the tests. The long form:

    FUZZ_REQUESTS=20000 ./stack test tests/fuzz -q
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from nginx_access_exporter.line import CACHE_STATUSES, METHODS, NO_CACHE_STATUS, OTHER_METHOD
from tests.alerting import faster_configuration
from tests.fuzz.counting import EXPORTER, Counts, failures, samples, scrapes, settled
from tests.fuzz.hostile import attacks, send
from tests.stacks import ROOT, Process, Stack, launch, wait_until

SEED = 15
REQUESTS = int(os.environ.get("FUZZ_REQUESTS") or 3000)
LONG = 20_000
CLIENTS = 32
SERVICES = ("nginx-proxy", "flask-app", EXPORTER)
GROWTH = 1.05  # of a process's memory, after the first quarter of the requests
ROUTES = {"/", "/info", "/cache-me", "/static/<path:filename>", "static", "unmatched", "none"}
# They say that the machine is too slow for this many requests, hostile or not.
TOO_MANY = "Request(Queueing|sShed)|WorkersSaturated|UpstreamSlow|LatencyBudgetBurn.*|CPUThrottled"
FIRING = f'ALERTS{{alertstate="firing", alertname!~"Watchdog|{TOO_MANY}"}}'


@dataclasses.dataclass(frozen=True)
class Result:
    """A stack after an attack, and what happened in it meanwhile."""

    stack: Stack
    began: float  # Unix time
    counts: Counts
    scrapes: range  # from the fewest to the most
    noticed: list[str]  # by an ordinary client
    processes: tuple[list[Process], list[Process]]  # before, after
    memory: tuple[dict[Process, int], dict[Process, int]]  # after a quarter, after all


@pytest.fixture(scope="module")
def result(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    """The sample app's stack, in whose Prometheus time passes ten times faster."""
    settings = faster_configuration(tmp_path_factory.mktemp(f"fuzz-{kind}"))
    # No request may fail because this machine is busy.
    settings |= {"WSGI_APP": "sample:app", "GUNICORN_QUEUE_TIMEOUT": "60"}
    with launch(kind, settings, ROOT / "tests" / "fuzz" / "compose.yaml") as stack:
        wait_until(lambda: len(stack.query("up == 1")) >= 6, 60, "a first scrape of all")
        # Time passes faster here, so a service that starts late on a busy machine raises an alert.
        wait_until(lambda: not stack.query(FIRING), 60, "no alert to fire")
        yield attack(stack)


def attack(stack: Stack) -> Result:
    address, began = urlsplit(stack.http), time.time()
    before, begun = settled(stack), processes(stack)
    todo = attacks(SEED, REQUESTS)

    def send_some(number: int) -> None:
        with ThreadPoolExecutor(CLIENTS) as clients:
            some = itertools.islice(todo, number)
            list(clients.map(partial(send, (address.hostname, address.port)), some))

    with Bystander(stack) as bystander:
        send_some(REQUESTS // 4)
        memory = resident(stack)
        send_some(REQUESTS - REQUESTS // 4)
        grown = resident(stack)
    after = settled(stack)
    return Result(
        stack,
        began,
        after.since(before),
        scrapes(stack, after, before),
        bystander.noticed,
        (begun, processes(stack)),
        (memory, grown),
    )


class Bystander:
    """An ordinary client, which must not notice the attack."""

    EXPECTED = (
        ("/", "Hello World!"),
        ("/cache-me", "nginx will cache this response"),
        ("/info", "bystander"),
    )

    def __init__(self, stack: Stack) -> None:
        self._url = stack.http
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.noticed: list[str] = []

    def __enter__(self) -> Bystander:  # noqa: D105
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:  # noqa: D105
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        with requests.Session() as client:
            client.headers["User-Agent"] = "bystander"
            for path, text in itertools.cycle(self.EXPECTED):
                if self._ended.wait(0.05):
                    return
                try:
                    answer = client.get(self._url + path, timeout=30)
                except requests.RequestException as error:
                    self.noticed.append(f"{path}: {error}")
                    continue
                if answer.status_code != 200 or text not in answer.text:
                    self.noticed.append(f"{path}: {answer.status_code} {answer.text[:100]}")


def processes(stack: Stack) -> list[Process]:
    """The processes that should live until the end."""
    nginx = [
        process
        for process in stack.processes("nginx-proxy")
        # Not the cache watcher beside it, which starts short programs.
        if process.command.startswith("nginx: ") and "cache loader" not in process.command
    ]
    return nginx + stack.processes("flask-app") + stack.processes(EXPORTER)


def resident(stack: Stack) -> dict[Process, int]:
    """The memory of each process, in KB, without shared zones: their size is fixed."""
    found = {}
    for process in processes(stack):
        status = Path(f"/proc/{process.pid}/status").read_text()
        parts = re.findall(r"^Rss(?:Anon|File):\s+(\d+) kB", status, re.M)
        found[process] = sum(map(int, parts))
    return found


def test_no_process_ends(result: Result) -> None:
    before, after = result.processes
    assert after == before


def test_an_ordinary_client_notices_nothing(result: Result) -> None:
    assert result.noticed == []


def test_nothing_fails(result: Result) -> None:
    assert result.counts.failed == 0, failures(samples(result.stack, EXPORTER))
    assert result.counts.incomplete == 0


def test_every_request_is_counted_once(result: Result) -> None:
    counts = result.counts
    assert counts.lines > REQUESTS / 2  # what is no request at all is not counted
    assert counts.malformed == 0
    assert counts.served - counts.lines in result.scrapes
    assert counts.answered + counts.refreshed <= counts.flask + counts.left
    assert counts.flask <= counts.answered + counts.refreshed + counts.left


def test_clients_cannot_make_series(result: Result) -> None:
    allowed = {
        "route": ROUTES,
        "method": METHODS | {OTHER_METHOD},
        "cache": CACHE_STATUSES | {NO_CACHE_STATUS},
    }
    for service, prefix in ((EXPORTER, "nginx_route_"), ("flask-app", "flask_http_")):
        for name, found in samples(result.stack, service).items():
            for labels, _ in found if name.startswith(prefix) else ():
                assert all(labels[each] in allowed[each] for each in labels.keys() & allowed), (
                    labels
                )
                assert re.fullmatch(r"[1-5]\d\d|none", labels.get("status", "200"))


def test_lines_of_our_logs_are_json(result: Result) -> None:
    for service in SERVICES:
        for line in result.stack.logs(service).split("\n"):
            # The other lines of nginx's are its error log.
            if line.startswith("{") or (line and service != "nginx-proxy"):
                assert isinstance(json.loads(line), dict), line


def test_no_alert_fires(result: Result) -> None:
    seconds = time.time() - result.began
    assert result.stack.query(f"max_over_time({FIRING}[{seconds:.0f}s])") == []


@pytest.mark.skipif(REQUESTS < LONG, reason=f"needs {LONG} requests")
def test_memory_does_not_grow(result: Result) -> None:
    early, late = result.memory
    grown = {each: (early[each], late[each]) for each in early if late[each] > early[each] * GROWTH}
    assert grown == {}
