"""./stack traffic: how much is sent, how answers are counted, and when it stops."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import http.server
import re
import threading
import time
from collections.abc import Iterator

import pytest

from local import traffic
from local.settings import ROOT
from local.traffic import SCENARIOS, Scenario, Traffic

PLAIN = Scenario("", "", ("/a", "/b"), rate=100, duration=1)


class Server(http.server.ThreadingHTTPServer):
    """Counts requests by path; its attributes decide how it answers them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: collections.Counter[str] = collections.Counter()
        self.status = 200
        self.wait = 0.0  # seconds before each answer
        self.drop = False  # close the connection instead of answering
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.requests[self.path] += 1
        time.sleep(self.server.wait)
        self.close_connection = self.server.drop
        if self.server.drop:
            return
        self.send_response(self.server.status)
        self.send_header("Content-Length", "2")
        if self.path == "/a":
            self.send_header("X-Cache-Status", "HIT")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def sent(server: Server, scenario: Scenario, rate: float, duration: float) -> Traffic:
    run = Traffic(server.url, scenario, rate, duration)
    run.run(lambda _: None)
    return run


def test_reported_counts_equal_those_of_the_server(server: Server) -> None:
    run = sent(server, PLAIN, rate=100, duration=1)
    assert run.sent + run.unsent == 100  # a busy machine sends fewer
    assert run.sent == server.requests.total() > 0
    assert run.statuses == {"200": run.sent}
    assert run.cache_statuses == {"HIT": server.requests["/a"], "none": server.requests["/b"]}
    assert len(run.latencies) == run.sent


def test_requests_are_spread_over_the_duration(server: Server) -> None:
    begin = time.monotonic()
    sent(server, PLAIN, rate=20, duration=1)
    assert time.monotonic() - begin >= 0.95  # the last one is due then


def test_a_miss_storm_never_sends_a_url_twice(server: Server) -> None:
    runs = [sent(server, SCENARIOS["miss-storm"], rate=100, duration=0.5) for _ in range(2)]
    assert len(server.requests) == sum(run.sent for run in runs)
    assert all(run.sent + run.unsent == 50 for run in runs)
    assert set(server.requests.values()) == {1}


def test_a_burst_multiplies_the_rate_for_a_while() -> None:
    scenario = dataclasses.replace(PLAIN, burst=(4, 1, 10))
    due = list(traffic._schedule(scenario, 10, 8))
    assert sum(moment % 4 < 0.999 for moment in due) == pytest.approx(200, abs=2)
    assert sum(moment % 4 >= 1 for moment in due) == pytest.approx(60, abs=2)


def test_a_slow_server_gets_one_request_at_a_time_per_connection(server: Server) -> None:
    server.wait = 0.2
    run = sent(server, dataclasses.replace(PLAIN, connections=2), rate=100, duration=1)
    assert 0 < run.sent <= 14
    assert run.sent + run.unsent == 100
    assert f"not sent         {run.unsent} more were due" in traffic.summary(run, 1)


def test_requests_without_an_answer_are_counted_as_such(server: Server) -> None:
    server.drop = True
    run = sent(server, PLAIN, rate=20, duration=0.5)
    assert run.sent + run.unsent == 10
    assert run.statuses == {traffic.NO_ANSWER: run.sent}


def test_demo_routes_that_are_off_end_the_scenario_and_are_named(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.status = 404
    arguments = argparse.Namespace(scenario="errors", rate=None, duration=60)
    assert traffic.run(arguments, server.url) == 1
    shown = capsys.readouterr()
    assert "FLASK_DEMO=true" in shown.err
    assert re.search(r"sent +(\d+) requests", shown.out)[1] == str(server.requests.total())


def test_an_address_where_nothing_answers_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Server() as closed:
        url = closed.url
    arguments = argparse.Namespace(scenario="steady", rate=20, duration=0.2)
    assert traffic.run(arguments, url) == 1
    assert "nothing answered" in capsys.readouterr().err


def test_stop_waits_for_requests_in_flight(server: Server) -> None:
    server.wait = 0.3
    run = Traffic(server.url, PLAIN, rate=50, duration=60)
    running = threading.Thread(target=run.run, args=(lambda _: None,))
    running.start()
    while not server.requests:
        time.sleep(0.01)
    run.stop()
    running.join()
    assert run.statuses == {"200": server.requests.total()}
    assert run.unsent == 0


@pytest.mark.parametrize("text", ["0", "-1", "1001", "fast", "nan", "inf"])
def test_rates_out_of_bounds_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    traffic.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["steady", f"--rate={text}"])
    assert "expected a number above 0, up to 1000" in capsys.readouterr().err


def test_the_alerts_that_scenarios_announce_exist() -> None:
    rules = (ROOT / "prometheus" / "rules" / "alerts.yml").read_text()
    alerts = set(re.findall(r"alert: (\w+)", rules))
    announced = {
        name
        for each in SCENARIOS.values()
        for name in re.findall(r"\b(?:[A-Z][a-z]+){2,}", each.watch)
    }
    assert announced
    assert announced <= alerts


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1, 100), (0.001, 1)]
)
def test_percentile_is_a_value_that_occurred(share: float, expected: float) -> None:
    assert traffic.percentile([float(number) for number in range(100, 0, -1)], share) == expected
