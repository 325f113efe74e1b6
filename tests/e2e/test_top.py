"""./stack top and ./stack traffic, on a running stack and in a real terminal."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from local.settings import ROOT
from local.top.snapshot import COLUMNS, expressions
from tests import sample
from tests.stacks import ComposeStack, LocalStack, Stack, launch, wait_until
from tests.terminals import Terminal, terminal

EXPORTER, COUNTED = "nginx-access-exporter", "nginx_route_requests_total"
HITS = ("HIT", "STALE", "UPDATING")
WINDOW = 60.0  # seconds
# Requests per second by route.
RATES = {"/": 4, "/cache-me": 22, "/info": 3, "/demo/slow": 6, "/demo/error": 4}
NARROW = 60  # characters


@pytest.fixture(scope="module")
def demo(kind: str) -> Iterator[Stack]:
    """A stack of this module's own, whose demo routes are on."""
    if not sample.demo_is_in_place():
        pytest.skip("flask/ has another app than the sample")
    with launch(kind, {"FLASK_DEMO": "true"}) as stack:
        yield stack


@pytest.fixture(scope="module")
def local() -> Iterator[LocalStack]:
    with launch("local") as stack:
        assert isinstance(stack, LocalStack)
        requests.get(f"{stack.http}/info", timeout=10)
        yield stack


# --- known traffic --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer, and when it came (Unix seconds)."""

    time: float
    route: str
    status: int
    cache: str | None


class KnownTraffic:
    """Requests to five routes, each at its own rate: 39 a second in all."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(route, rate)) for route, rate in RATES.items()
        ]
        self.answers: list[Answer] = []

    def __enter__(self) -> KnownTraffic:  # noqa: D105
        self.start = time.time()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:  # noqa: D105
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def of_window(self, end: float) -> list[Answer]:
        """The answers of the minute before the last scrape, which is some seconds old by `end`."""
        end -= 2.5
        return [answer for answer in self.answers if end - WINDOW < answer.time <= end]

    def _send(self, route: str, rate: float) -> None:
        number = 0
        with requests.Session() as session:
            while not self._stopped.wait(max(0, self.start + number / rate - time.time())):
                response = session.get(self._url + self._path(route, number), timeout=30)
                cache = response.headers.get("X-Cache-Status")
                self.answers.append(Answer(time.time(), route, response.status_code, cache))
                number += 1

    def _path(self, route: str, number: int) -> str:
        if route == "/cache-me" and number % 5 == 0:
            return f"{route}?new={id(self)}-{number}"
        if route == "/info" and number % 3 == 0:
            return f"{route}?status=500"
        return f"{route}?seconds=0.05" if route == "/demo/slow" else route


def share(answers: list[Answer], part: list[Answer]) -> float:
    return len(part) / len(answers)


def differences(shown: dict[str, Any], sent: list[Answer]) -> list[str]:
    """The figures that differ by more than 5 % from the traffic that was sent."""
    failed = [answer for answer in sent if answer.status >= 500]
    lookups = [answer for answer in sent if answer.cache]
    hits = [answer for answer in lookups if answer.cache in HITS]
    top = {name: figure["value"] for name, figure in shown["headline"].items()}
    rows = {row["route"]: row for row in shown["routes"]}
    pairs = {
        "requests": (top["requests_per_second"], len(sent) / WINDOW),
        "errors": (top["error_ratio"], share(sent, failed)),
        "hits": (top["cache_hit_ratio"], share(lookups, hits)),
        "hits of /cache-me": (rows["/cache-me"]["cache_hit_ratio"], share(lookups, hits)),
    }
    for route in RATES:
        of_route = [answer for answer in sent if answer.route == route]
        errors = [answer for answer in of_route if answer.status >= 500]
        row = rows[route]
        pairs[f"requests of {route}"] = (row["requests_per_second"], len(of_route) / WINDOW)
        pairs[f"errors of {route}"] = (row["error_ratio"], share(of_route, errors))
    return [
        f"{name}: shown {value}, sent {expected}"
        for name, (value, expected) in pairs.items()
        if value != pytest.approx(expected, rel=0.05)
    ]


def json_frame(stack: Stack) -> dict[str, Any]:
    done = stack.command("top", "--once", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_figures_equal_the_traffic_sent_and_prometheus_answers(demo: Stack) -> None:
    before = counted(demo)
    with KnownTraffic(demo.http) as traffic:
        wait_until(
            lambda: time.time() > traffic.start + WINDOW + 15, WINDOW + 30, "a minute of traffic"
        )
        # On a busy machine a scrape may be late, and a minute's traffic uneven. Then try the next.
        deadline = time.monotonic() + 120
        while True:
            shown = json_frame(demo)
            different = differences(shown, traffic.of_window(shown["time"]))
            if not different:
                break
            assert time.monotonic() < deadline, different
    everything = len(traffic.answers)
    wait_until(lambda: (counted(demo) - before).total() == everything, 20, "nginx to count it all")
    assert shown["window"] == "1m"
    assert shown["headline"]["error_ratio"]["bad"]
    assert not shown["headline"]["cache_hit_ratio"]["bad"]
    rows = {row["route"]: row for row in shown["routes"]}
    assert all(rows[route]["p95_miss_seconds"] > 0 for route in RATES)
    assert rows["/cache-me"]["p95_hit_seconds"] > 0
    assert rows["/demo/slow"]["p95_miss_seconds"] >= 0.05 * 0.75
    slow = rows["/demo/slow"]
    assert slow["flask_seconds_per_second"] >= slow["requests_per_second"] * 0.05 * 0.95

    queries = expressions("1m")
    for column in COLUMNS:
        query, at = queries[f"route {column.key}"], f"{shown['time']:.3f}"
        answered = demo.api("query", query=query, time=at, timeout=10)["result"]
        assert {series["metric"]["route"] for series in answered} >= {"/cache-me"}
        for series in answered:
            value = float(series["value"][1])
            assert rows[series["metric"]["route"]][column.key] == pytest.approx(value, nan_ok=True)


# --- traffic --------------------------------------------------------------------------------------


def counted(stack: Stack) -> collections.Counter[tuple[str, str]]:
    """The requests that nginx has counted, by status and cache status."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for labels, value in re.findall(rf"^{COUNTED}{{(.*)}} (\S+)", stack.metrics(EXPORTER), re.M):
        status, cache = (re.search(rf'{name}="(\w+)"', labels) for name in ("status", "cache"))
        assert status is not None
        assert cache is not None
        found[status[1], cache[1].replace("NONE", "none")] += int(float(value))
    return found


def listed(output: str, title: str) -> dict[str, int]:
    """The counts of a line of a scenario's summary."""
    line = re.search(rf"^{title} +(.*)$", output, re.M)
    assert line is not None, output
    return {name: int(count) for name, count in re.findall(r"(\w+): (\d+)", line[1])}


def unsent(output: str) -> int:
    """How many requests were due but not sent, because the machine is slower than the rate."""
    found = re.search(r"^not sent +(\d+) more", output, re.M)
    return int(found[1]) if found else 0


def assert_counts_are_those_of_nginx(
    stack: Stack, before: collections.Counter[tuple[str, str]], output: str
) -> int:
    found = re.search(r"^sent +(\d+) requests", output, re.M)
    assert found is not None, output
    sent = int(found[1])
    wait_until(lambda: (counted(stack) - before).total() >= sent, 20, "nginx's log to be read")
    new = counted(stack) - before
    assert new.total() == sent
    for title, position in (("by status", 0), ("by cache status", 1)):
        by_nginx: collections.Counter[str] = collections.Counter()
        for key, count in new.items():
            by_nginx[key[position]] += count
        assert listed(output, title) == by_nginx
    return sent


@pytest.mark.parametrize(
    ("scenario", "rate", "expected"),
    [("steady", 50, 200), ("miss-storm", 50, 200), ("errors", 40, 160), ("slow-upstream", 10, 40)],
)
def test_a_scenario_reports_the_counts_of_nginx(
    demo: Stack, scenario: str, rate: int, expected: int
) -> None:
    before = counted(demo)
    done = demo.command("traffic", scenario, f"--rate={rate}", "--duration=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Watch: " in done.stdout
    sent = assert_counts_are_those_of_nginx(demo, before, done.stdout)
    assert sent + unsent(done.stdout) == expected


def test_an_interrupted_scenario_prints_its_summary(demo: Stack) -> None:
    before = counted(demo)
    command = [ROOT / "stack", "traffic", "overload", "--duration=60"]
    with subprocess.Popen(
        command, env=demo.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: (counted(demo) - before).total() > 5, 30, "some answers")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert_counts_are_those_of_nginx(demo, before, output)


def test_a_scenario_runs_in_a_container(demo: Stack) -> None:
    if not isinstance(demo, ComposeStack):
        pytest.skip("a local stack has no containers")
    before = counted(demo)
    output = demo.compose(
        "run", "--rm", "--no-deps", "traffic", "steady", "--rate=20", "--duration=3"
    )
    assert assert_counts_are_those_of_nginx(demo, before, output) + unsent(output) == 60


def test_a_scenario_whose_routes_are_off_says_how_to_switch_them_on(local: LocalStack) -> None:
    done = local.command("traffic", "slow-upstream")
    assert done.returncode == 1
    assert "FLASK_DEMO=true" in done.stderr


# --- the live view --------------------------------------------------------------------------------


def top(stack: Stack, *arguments: str, **env: str) -> list[Any]:
    """A command for `terminal`, and its environment."""
    return [[ROOT / "stack", "top", *arguments], stack.environment | env]


def test_every_key_works(local: LocalStack) -> None:
    with terminal(*top(local)) as view:
        view.wait_for("routes by Flask s/s ▼")
        view.wait_for("/info")
        view.press("s")
        view.wait_for("routes by name ▲")
        view.press("r")
        view.wait_for("routes by name ▼")
        view.press("S")
        view.wait_for("routes by Flask s/s ▲")
        view.press("w")
        view.wait_for("over 5m")
        view.press("?")
        view.wait_for("sort the routes by the next column")
        view.press("?p")
        paused = view.wait_for("paused").splitlines()[0]
        assert_unchanged(view, paused)
        view.press(" ")
        view.wait_for("paused", gone=True)
        view.wait_for(paused.split()[2], gone=True)  # its clock runs again
        view.press("q")
        assert view.wait() == 0


def assert_unchanged(view: Terminal, first_line: str) -> None:
    """The view's first line does not change within more than one refresh."""
    with pytest.raises(AssertionError):
        view.wait_for(first_line, timeout=5, gone=True)


@pytest.mark.parametrize(("end", "status"), [("\x03", 130), ("q", 0)])
def test_the_terminals_settings_are_restored_at_the_end(
    local: LocalStack, end: str, status: int
) -> None:
    shell = [
        "sh",
        "-c",
        'trap : INT; stty -g; "$@"; code=$?; stty -g; exit $code',
        "sh",
        *top(local)[0],
    ]
    with terminal(shell, local.environment) as view:
        view.wait_for("q quit")
        view.press(end)
        assert view.wait() == status
        settings = re.findall(rb"[0-9a-f]+(?::[0-9a-f]+){30,}", view.output)
        assert len(settings) == 2
        assert settings[0] == settings[1]
        assert b"\x1b[?1049l" in view.output  # the shell's screen is back
        assert b"\x1b[?25h" in view.output  # with its cursor


def test_ctrl_z_gives_the_terminal_to_the_shell_until_the_view_continues(
    local: LocalStack,
) -> None:
    command, env = top(local)
    shell = ["bash", "--norc", "-i"]
    with terminal(shell, env | {"PS1": "prompt> ", "HISTFILE": "/dev/null"}) as view:
        view.wait_for("prompt>")
        view.press(f"{command[0]} top\n")
        view.wait_for("q quit")
        view.press("\x1a")
        view.wait_for("Stopped")
        view.press("stty -a | grep -c ' icanon'; clear\n")
        view.wait_for("Stopped", gone=True)
        view.press("fg\n")
        view.wait_for("q quit")
        view.press("q")
        view.wait_for("prompt>")
        view.press("exit\n")
        assert view.wait() == 0
        assert re.search(rb"[\r\n]1\r\n", view.output)  # the shell got whole lines again


def test_the_view_follows_the_size_of_the_terminal(local: LocalStack) -> None:
    with terminal(*top(local)) as view:
        view.wait_for("Memory")
        view.resize(NARROW, 20)
        text = view.wait_for("\nSlowest p95")  # the top line takes two rows of numbers now
        assert text.startswith("stack top")
        assert "\n/info" in text
        assert "q quit" in text
        assert "Memory" not in text


def test_an_outage_of_prometheus_is_shown_until_it_ends(local: LocalStack) -> None:
    with terminal(*top(local)) as view:
        view.wait_for("/info")
        local.stop("prometheus")
        try:
            text = view.wait_for("no news for")
            assert "Prometheus does not answer" in text
            assert "/info" in text  # the last figures stay
        finally:
            local.start("prometheus")
        view.wait_for("no news for", gone=True)


def test_without_utf_8_only_ascii_is_written(local: LocalStack) -> None:
    with terminal(*top(local, LC_ALL="C")) as view:
        view.wait_for("q quit")
        view.press("?")
        view.wait_for("this help")
        assert view.output.isascii()


def test_without_colours_none_are_written(local: LocalStack) -> None:
    with terminal(*top(local, NO_COLOR="1")) as view:
        view.wait_for("q quit")
        colours = re.findall(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d|10\d)(?:;\d+)*m", view.output)
        assert colours == []


def test_without_a_terminal_one_frame_is_printed(local: LocalStack) -> None:
    done = local.command("top")
    assert done.returncode == 0
    assert "Requests/s" in done.stdout
    assert "\x1b" not in done.stdout
    assert "q quit" not in done.stdout


def test_a_picture_is_written(local: LocalStack, tmp_path: Path) -> None:
    picture = tmp_path / "top.svg"
    assert local.command("top", f"--svg={picture}").returncode == 0
    assert picture.read_text().startswith("<svg")
    assert "/info" in picture.read_text().replace("&#160;", " ")


def test_a_prometheus_that_does_not_answer_is_an_error(local: LocalStack) -> None:
    done = local.command("top", "--once", "--prometheus=http://127.0.0.1:1")
    assert done.returncode == 1
    assert "Prometheus does not answer at http://127.0.0.1:1" in done.stderr
    done = local.command("top", "--once", f"--prometheus={local.http}")
    assert done.returncode == 1
    assert "Prometheus answers 404" in done.stderr


def test_a_stack_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    env = os.environ | {"STACK_RUN_DIR": str(tmp_path), "COMPOSE_PROJECT_NAME": "stack-test-none"}
    for command in (["top", "--once"], ["traffic", "steady"]):
        done = subprocess.run(
            [ROOT / "stack", *command], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "nothing runs" in done.stdout + done.stderr
