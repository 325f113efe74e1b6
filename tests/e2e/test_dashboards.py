"""The dashboards on a live stack: every query runs, and its result fits the traffic sent."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.grafana_check import FRONTEND_VALUES
from tests.stacks import Stack, launch, wait_until

FILES = sorted((Path(__file__).parents[2] / "grafana" / "dashboards").glob("*.json"))
DASHBOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in FILES}

STEP = 5  # seconds; the scrape interval, which is the smallest step that Grafana uses here
GRAFANA_VALUES = FRONTEND_VALUES | {
    "$__rate_interval": f"{4 * STEP}s",
    "$__interval": f"{STEP}s",
}

# Series that the script below does not produce, by panel and legend.
NEVER_SEEN = {
    ("Requests by cache status", "STALE"),
    ("Requests by cache status", "UPDATING"),
    ("Requests by cache status", "REVALIDATED"),
    ("Requests by cache status", "EXPIRED"),
    ("Failed attempts and retries", "retries"),
    ("Requests by route", "other"),
    ("Hit ratio by route", "other"),
    ("Listen backlog", "alert above"),
    # Only under overload.
    ("Requests shed", "{{reason}} {{route}}"),
    ("Requests shed", "alert above"),
    ("Passed on by nginx, counted by Flask", "gunicorn shed"),
    # Local processes have no limit of their own.
    ("Container memory", "{{job}} · {{instance}}"),
    ("Container memory", "alert above"),
    ("CPU throttling", "{{job}} · {{instance}}"),
    ("CPU throttling", "alert above"),
    ("Responses by Flask", "3xx"),
    ("Notifications", "{{integration}}"),
    ("Notifications", "failed"),
    ("Passed on by nginx, counted by Flask", "answered stale"),
    ("Budget burn", "{{slo}}"),  # recorded only once a minute, so it may not exist yet
    ("Budget burn", "pages above"),
    ("Flask time saved", "saved"),  # once a minute, too
    ("Routes", "{{route}}"),  # the sparklines, too
}

# Series that the access exporter has if it can see the cache.
OF_THE_CACHE = {
    ("Cache size", "{{zone}}"),
    ("Cache size", "max_size"),
    ("Cache entries", "{{zone}}"),
    ("Cache entries", "keys that fit"),
    ("Oldest cache entry", "{{zone}}"),
    ("Cache evictions", "{{zone}}"),
}

ROUTES = {"/", "/cache-me", "/info", "unmatched", "none"}
WINDOW = 300  # seconds: the window of the figures that alerts compare
NEAR = 5.4  # seconds: rate() extrapolates to an edge whose sample is < 1.1 scrape intervals away
SLOW = 0.6  # seconds
RULES_BY_ROUTE = "route:nginx_requests:rate5m"  # one of them
LE_BELOW_SLOW = 0.5  # the highest bound of a bucket below that
SLEEPERS = 6  # requests that take so long

Labels = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Case:
    """One query of one panel."""

    dashboard: str
    panel: dict[str, Any]
    target: dict[str, Any]

    @property
    def name(self) -> str:
        """For the test's id."""
        return f"{self.dashboard}-{self.panel['title']}-{self.target['refId']}"


CASES = [
    Case(uid, panel, target)
    for uid, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    for target in panel.get("targets", [])
]


def prepared(expression: str, values: dict[str, str]) -> str:
    """PromQL with values in place of the dashboards' variables."""
    for name, value in (GRAFANA_VALUES | values).items():
        expression = expression.replace(name, value)
    assert "$__" not in expression
    return expression


def over_time(stack: Stack, expression: str, start: float, end: float) -> list[dict[str, Any]]:
    """The series of an expression, as Grafana asks for them."""
    query = {"query": prepared(expression, {}), "start": start, "end": end, "step": STEP}
    return stack.api("query_range", **query)["result"]


def series_of(stack: Stack, case: Case, start: float) -> list[dict[str, Any]]:
    """What a panel gets for one of its queries."""
    if case.target["instant"]:
        return stack.query(prepared(case.target["expr"], {}))
    return over_time(stack, case.target["expr"], start, time.time())


@pytest.fixture(scope="module")
def idle(kind: str) -> Iterator[Stack]:
    """A stack of its own that has got no requests except health checks."""
    with launch(kind) as stack:
        yield stack


# Without traffic


def is_limit(case: Case) -> bool:
    """Whether a query is drawn as the limit of an alert."""
    return any(
        override["matcher"] == {"id": "byFrameRefID", "options": case.target["refId"]}
        and "custom.lineStyle" in {each["id"] for each in override["properties"]}
        for override in case.panel["fieldConfig"]["overrides"]
    )


def test_no_panel_of_an_idle_stack_is_empty_without_a_reason(idle: Stack) -> None:
    """An empty panel says why, and does not show a limit alone."""
    started = time.time() - STEP

    def unexplained() -> list[str]:
        silent = []
        for uid, dashboard in DASHBOARDS.items():
            for panel in dashboard["panels"]:
                cases = [Case(uid, panel, target) for target in panel.get("targets", [])]
                measured = [case for case in cases if not is_limit(case)]
                shown = [case for case in cases if series_of(idle, case, started)]
                says_why = (
                    panel["type"] in ("row", "heatmap")  # the latter in its description
                    or panel["fieldConfig"]["defaults"]["noValue"] != "No data"
                )
                if shown and not any(case in shown for case in measured):
                    silent.append(f"{uid}: {panel['title']} has a limit only")
                elif not shown and not says_why:
                    silent.append(f"{uid}: {panel['title']} has nothing")
        return silent

    # Rates need two scrapes, and rules the scrapes before them.
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not unexplained(), 60, "data in every panel")
    assert unexplained() == []


def test_no_traffic_is_told_apart_from_zero(idle: Stack) -> None:
    def stat(title: str) -> list[float]:
        return [sample["value"] for sample in idle.query(prepared(query_of(title), {}))]

    wait_until(lambda: stat("Request rate") == [0], 30, "a request rate of zero")
    for title in ("Error ratio", "Hit ratio", "p95 latency"):
        (value,) = stat(title)
        assert math.isnan(value), title


# With known traffic

Answers = Counter[tuple[str, int, str]]  # by route, status and cache


def count(answers: Answers, *, route: str = ".*", status: str = ".*", cache: str = ".*") -> int:
    """How many answers match these regular expressions."""
    wanted = (route, status, cache)
    return sum(
        number
        for answer, number in answers.items()
        if all(re.fullmatch(*pair) for pair in zip(wanted, map(str, answer), strict=True))
    )


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Traffic that has ended, and that Prometheus has scraped completely.

    Args:
        stack: the stack that got it.
        everything: all answers since the stack started.
        answers: those between two scrapes of every target: what a rate over that time shows.
        started: a Unix time before the first of those scrapes.
        ended: a Unix time after the last.
        evaluated: the Unix time of a later evaluation of the rules by route: at that time, a
            recorded ratio is exactly what its expression returns.
    """

    stack: Stack
    everything: Answers
    answers: Answers
    started: float
    ended: float
    evaluated: float

    def values(self, title: str, legend: str = "", route: str = ".+") -> dict[str, float]:
        """The results of a panel's query by legend, with rates over the time of `answers`."""
        expression = prepared(
            query_of(title, legend),
            {"$__rate_interval": self._window, "$route": route},
        )
        found = self.stack.api("query", query=expression, time=self.ended)["result"]
        return {named(legend, each["metric"]): float(each["value"][1]) for each in found}

    def value(self, title: str, legend: str = "", route: str = ".+") -> float:
        """The result of a query with one series."""
        (value,) = self.values(title, legend, route).values()
        return value

    def shown(self, uid: str, title: str, ref: str, route: str = ".+") -> dict[str, float]:
        """The results of one query of a panel after the traffic, by series, without NaN."""
        (case,) = (
            case
            for case in CASES
            if (case.dashboard, case.panel["title"], case.target["refId"]) == (uid, title, ref)
            and not (case.panel["type"] == "timeseries" and has_stat(uid, title))
        )
        expression = prepared(case.target["expr"], {"$route": route})
        found = self.stack.api("query", query=expression, time=self.evaluated)["result"]
        values = {series_name(case, each["metric"]): float(each["value"][1]) for each in found}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def total(self, rate: float, job: str = "nginx-access-exporter") -> float:
        """The number of events that a rate stands for, from the first scrape to the last."""
        query = f'up{{job="{job}"}}[{self._window}]'
        (scrapes,) = self.stack.api("query", query=query, time=self.ended)["result"]
        times = [at for at, _ in scrapes["values"]]
        return rate * (times[-1] - times[0])

    @property
    def _window(self) -> str:
        return f"{round((self.ended - self.started) * 1000)}ms"


def has_stat(uid: str, title: str) -> bool:
    """Whether a figure with this title is shown as a stat, too."""
    panels = DASHBOARDS[uid]["panels"]
    return any((panel["type"], panel["title"]) == ("stat", title) for panel in panels)


def series_name(case: Case, labels: Labels) -> str:
    """A series' name: by its legend, or by the column that tells a table's rows apart."""
    if case.target["refId"] == "basis":
        return labels["text"]
    if case.panel["title"] == "Active alerts":
        return " ".join(labels.get(name, "") for name in ("alertname", "alertstate", "route"))
    legend = case.target["legendFormat"] or "{{route}}"
    return named(legend, labels)


def query_of(title: str, legend: str = "") -> str:
    """The query of the panel with that title; its first one if no legend is given."""
    return next(
        case.target["expr"]
        for case in CASES
        if case.panel["title"] == title and legend in ("", case.target["legendFormat"])
    )


def named(legend: str, labels: Labels) -> str:
    """A series' name in the legend."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels[match[1]], legend)


def send(stack: Stack) -> Answers:
    """Send requests for hits, misses, errors and slow answers; return how many of each came."""
    seen: Answers = Counter()

    def ask(times: int, route: str, url: str, **options: Any) -> None:  # noqa: ANN401
        for number in range(times):
            answer = requests.get(stack.http + url.format(number), timeout=30, **options)
            seen[route, answer.status_code, answer.headers.get("X-Cache-Status", "NONE")] += 1

    new = time.time_ns()  # makes URLs that are not in the cache yet
    etag = requests.get(f"{stack.flask}/cache-me?new={new}", timeout=30).headers["ETag"]
    ask(30, "/", "/")
    ask(8, "/", "/?status=500")
    ask(5, "unmatched", "/nowhere")
    ask(20, "/info", "/info")
    ask(40, "/cache-me", "/cache-me")
    ask(3, "/cache-me", "/cache-me", headers={"If-None-Match": etag})
    ask(10, "/cache-me", f"/cache-me?new={new}-{{}}")
    ask(4, "/cache-me", "/cache-me", headers={"Authorization": "Basic eDp5"})
    with ThreadPoolExecutor(SLEEPERS) as pool:
        asked = [pool.submit(ask, 1, "/info", f"/info?sleep={SLOW}") for _ in range(SLEEPERS)]
        for done in asked:
            done.result()
    return seen


def wait_for_prometheus(stack: Stack, answers: Answers) -> None:
    """Wait until Prometheus and its rules know all these answers."""

    def counted() -> bool:
        found = stack.query("sum(nginx_route_requests_total)")
        return bool(found) and found[0]["value"] == answers.total()

    wait_until(counted, 30, "Prometheus to know of every request")
    # The cache is scanned rarely.
    wait_until(
        lambda: stack.query("nginx_cache_oldest_entry_age_seconds"), 60, "a scan of the full cache"
    )
    # In this order: scraped series, the rules by route, and the rules that sum those up. Then the
    # rules by route again, so that their last evaluation comes after one of the totals.
    for what in (
        "up",
        RULES_BY_ROUTE,
        "stack:nginx_cache_offload:ratio_rate5m",
        RULES_BY_ROUTE,
    ):
        now, oldest = time.time(), f"min(timestamp({what}))"
        wait_until(lambda: stack.query(f"{oldest} > {now}"), 30, f"{what} to be new")  # noqa: B023


def steady_moment(stack: Stack) -> float:
    """A Unix time with a scrape shortly before and after it, of both targets that count requests.

    A window that begins or ends at such a time gets the whole of its rate: see NEAR.
    """

    def scraped(before: float) -> str:
        targets = 'up{job=~"nginx-access-exporter|flask-app"}'
        return f"sum(min_over_time({targets}[{NEAR * 1000:.0f}ms] @ {before:.3f}))"

    def attempt() -> float | None:
        now = time.time()
        both = f"{scraped(now)} + {scraped(now + NEAR)} == 4"
        with contextlib.suppress(AssertionError):
            wait_until(lambda: stack.query(both), 10, "scrapes close by")
            return now
        return None

    return wait_until(attempt, 120, "two scrapes that are neither late nor lost")


@pytest.fixture(scope="module")
def traffic(idle: Stack) -> Traffic:
    """Send the script twice, so that its series exist before the second time; then break things."""
    # Prometheus sees no increase in what a target counts before its first scrape.
    scraped = 'up{job=~"nginx-access-exporter|flask-app"} == 1'
    wait_until(lambda: len(idle.query(scraped)) == 2, 60, "a first scrape")
    first = send(idle)
    wait_for_prometheus(idle, first)
    started = steady_moment(idle)
    wait_until(lambda: idle.query(f"min(timestamp(up)) > {started}"), 30, "a scrape in between")
    second = send(idle)
    # nginx sends a POST only once, so it kills only one worker.
    assert requests.post(f"{idle.http}/?die={signal.SIGKILL:d}", timeout=30).status_code == 502
    second["none", 502, "NONE"] += 1
    idle.kill("nginx-proxy", signal.SIGHUP)
    wait_for_prometheus(idle, first + second)
    ended = steady_moment(idle)
    query = f"max(timestamp({RULES_BY_ROUTE}))"
    (evaluated,) = idle.api("query", query=query, time=ended)["result"]
    return Traffic(idle, first + second, second, started, ended, float(evaluated["value"][1]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_query_returns_series_with_the_labels_its_legend_uses(
    case: Case, traffic: Traffic
) -> None:
    found = series_of(traffic.stack, case, traffic.started)
    legend = case.target["legendFormat"]
    never = NEVER_SEEN | (set() if traffic.stack.query("nginx_cache_entries") else OF_THE_CACHE)
    if (case.panel["title"], legend) not in never:
        assert found
    used = set(re.findall(r"\{\{(\w+)\}\}", legend))
    for series in found:
        assert all(series["metric"].get(label) for label in used)
    if not case.target["instant"] and not used:
        assert len(found) <= 1, "series that the legend does not tell apart"


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_every_variable_has_values(uid: str, traffic: Traffic) -> None:
    found = {}
    for variable in DASHBOARDS[uid]["templating"]["list"]:
        if variable["type"] == "query" and not variable["hide"]:
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            series = {"match[]": prepared(asked[1], {})}
            values = traffic.stack.api(f"label/{asked[2]}/values", **series)
            found[variable["name"]] = set(values)
    assert found.pop("stack") == set()  # only a store has that label
    if found:
        assert found.get("route", ROUTES) == ROUTES
        assert len(found["instance"]) == 1


@pytest.mark.parametrize(("name", "chosen"), [("busiest", None), ("cached", {"/cache-me"})])
def test_line_panels_draw_the_busiest_routes_of_the_whole_range(
    traffic: Traffic, name: str, chosen: set[str] | None
) -> None:
    (variable,) = (
        each for each in DASHBOARDS["stack-overview"]["templating"]["list"] if each["name"] == name
    )
    asked = re.fullmatch(r"query_result\((.+)\)", variable["definition"])[1]
    found = traffic.stack.query(prepared(asked, {"$__range": "15m"}))
    routes = {each["metric"]["route"] for each in found}
    # The only request of "none" may come between two of the records, which are a minute apart.
    assert routes | {"none"} == (chosen or ROUTES) | {"none"}


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_links_lead_to_the_ports_of_this_stack(uid: str, traffic: Traffic) -> None:
    for variable in DASHBOARDS[uid]["templating"]["list"]:
        if variable["name"] in ("prometheus", "alertmanager", "runbooks"):
            asked = re.fullmatch(r"query_result\((.+)\)", variable["definition"])
            (found,) = traffic.stack.query(asked[1])
            labels = ",".join(f'{name}="{value}"' for name, value in found["metric"].items())
            (address,) = re.findall(variable["regex"].strip("/"), labels)
            # Debian's Alertmanager has no pages, but it answers this.
            page = address if variable["name"] == "runbooks" else f"{address}/-/ready"
            assert requests.get(page, timeout=30).ok, page
            if variable["name"] != "runbooks":
                assert (
                    urlsplit(address).port
                    == urlsplit(getattr(traffic.stack, variable["name"])).port
                )


def test_the_reload_the_killed_worker_and_its_alert_are_annotated_once(traffic: Traffic) -> None:
    annotations = {
        each["name"]: each for each in DASHBOARDS["stack-overview"]["annotations"]["list"]
    }

    def annotated(name: str) -> list[dict[str, Any]]:
        expression = annotations[name]["target"]["expr"]
        return over_time(traffic.stack, expression, traffic.started, time.time())

    for name, label, value in (
        ("Worker failures", "reason", "signal"),
        ("Alerts", "alertname", "WorkerKilled"),
        ("Reloads", "job", "nginx-proxy"),
    ):
        found = wait_until(
            lambda: [each for each in annotated(name) if each["metric"][label] == value],  # noqa: B023
            20,
            f"an annotation for {value}",
        )
        assert [len(each["values"]) for each in found] == [1]
        for text in ("titleFormat", "textFormat"):
            labels = {"route": ""} | found[0]["metric"]  # of alerts, only some have it
            assert named(annotations[name][text], labels)


def test_the_start_of_all_workers_is_annotated_at_its_time(traffic: Traffic) -> None:
    annotation = DASHBOARDS["stack-overview"]["annotations"]["list"][2]
    assert annotation["useValueForTime"] is True
    (series,) = over_time(
        traffic.stack, annotation["target"]["expr"], traffic.started - 60, traffic.ended
    )
    (at,) = {float(value) / 1000 for _, value in series["values"]}
    assert traffic.started - 600 < at < traffic.started


def test_requests_are_shown_by_route_and_status(traffic: Traffic) -> None:
    by_route = traffic.shown("stack-overview", "Routes", "requests_per_second")
    for route in ("/", "/cache-me", "/info", "unmatched"):
        answered = count(traffic.everything, route=route)
        # The counters are younger than the window, so Prometheus extrapolates at each end.
        assert WINDOW * by_route[route] == pytest.approx(answered, rel=0.1)
    for status in ("2xx", "3xx", "4xx", "5xx"):
        shown = traffic.total(traffic.value("Responses by status class", status))
        answered = count(traffic.answers, status=f"{status[0]}..", route="(?!none).*")
        assert shown == pytest.approx(answered, rel=0.05)


def test_a_route_shows_its_own_traffic_only(traffic: Traffic) -> None:
    for route in ("/", "/info"):
        shown = traffic.total(traffic.value("Responses by status class", "2xx", route))
        answered = count(traffic.answers, route=route, status="2..")
        assert shown == pytest.approx(answered, rel=0.05)
    assert traffic.values("Responses by status class", "5xx", "/info") == {}


def test_ratios_are_those_of_all_traffic_since_the_start(traffic: Traffic) -> None:
    answers = traffic.everything
    errors = count(answers, status="5..") / answers.total()
    assert traffic.value("Error ratio") == pytest.approx(errors, rel=0.05)
    hits = count(answers, cache="HIT") / count(answers, cache="HIT|MISS|BYPASS")
    assert traffic.value("Hit ratio") == pytest.approx(hits, rel=0.02)
    by_route = traffic.values("Hit ratio by route", "{{route}}")
    assert by_route == {"/cache-me": pytest.approx(hits, rel=0.02)}


def test_figures_that_two_panels_share_are_the_same(traffic: Traffic) -> None:
    """The panels do not contradict each other."""

    def overview(title: str, ref: str = "A") -> dict[str, float]:
        return traffic.shown("stack-overview", title, ref)

    def one(title: str, ref: str = "A", uid: str = "stack-overview", route: str = ".+") -> float:
        (value,) = traffic.shown(uid, title, ref, route).values()
        return value

    same = functools.partial(pytest.approx, rel=0.001)
    requests_per_second = overview("Routes", "requests_per_second")

    # Over a minute
    now = one("Request rate")
    assert sum(overview("Requests by route").values()) == same(now)
    by_status = [overview("Responses by status class", ref) for ref in "ABCD"]
    assert sum(value for found in by_status for value in found.values()) == same(now)

    # Over five
    everything = sum(requests_per_second.values())
    (basis,) = overview("Error ratio", "basis")
    assert int(basis.split()[1]) == pytest.approx(WINDOW * everything, abs=0.51)  # rounded
    errors = overview("Routes", "error_ratio")
    failed = sum(errors[route] * requests_per_second[route] for route in errors)
    assert one("Error ratio") == same(failed / everything)
    assert one("Error ratio", uid="route") == same(failed / everything)
    hits = overview("Routes", "cache_hit_ratio")
    assert hits == {"/cache-me": same(overview("Hit ratio by route")["/cache-me"])}
    assert hits == {"/cache-me": same(one("Hit ratio"))}
    assert hits == {"/cache-me": same(one("Hit ratio", uid="route", route="/cache-me"))}
    ((slowest, p95),) = overview("Slowest route").items()
    assert p95 == same(one("p95 latency", uid="route", route=slowest))
    assert p95 == same(one("p95 latency", uid="route"))
    (basis,) = overview("Slowest route", "basis")
    named_route, number = re.fullmatch(r"(.+), (\d+) requests", basis).groups()
    assert named_route == slowest
    assert int(number) == pytest.approx(WINDOW * requests_per_second[slowest], abs=0.51)
    (basis,) = traffic.shown("route", "p95 upstream", "basis", "/info")
    (number,) = re.fullmatch(r"of (\d+) requests to Flask", basis).groups()
    # A percentile misses what a histogram had counted before its first scrape.
    assert count(traffic.answers, route="/info") <= int(number)
    assert int(number) <= count(traffic.everything, route="/info")
    assert one("Offload") == same(one("Offload", uid="route"))
    firing = sum("firing" in name for name in overview("Active alerts"))
    assert one("Firing alerts") == firing
    assert one("Workers busy") <= 1


def test_the_routes_that_hurt_stand_first_and_requests_without_a_route_last(
    traffic: Traffic,
) -> None:
    order = traffic.shown("stack-overview", "Routes", "order")
    assert set(order) == {"/", "/cache-me", "/info", "unmatched"} | {"none"} & set(order)
    state = traffic.shown("stack-overview", "Routes", "state")
    assert state["/"] == 4, "8 of some 40 requests failed"
    assert state["/info"] == 0
    ranked = sorted(order, key=lambda route: -order[route])
    assert ranked[0] == "/"
    assert {"unmatched", "none"} & set(ranked) == set(ranked[3:])


def test_every_column_of_the_table_has_every_route(traffic: Traffic) -> None:
    """The table would lack a column in which no route has a value."""
    columns = [
        {series["metric"]["route"] for series in series_of(traffic.stack, case, traffic.started)}
        for case in CASES
        if case.panel["title"] == "Routes" and "NaN" in case.target["expr"]
    ]
    assert columns == [ROUTES] * 6


def test_cache_statuses_are_those_that_clients_saw(traffic: Traffic) -> None:
    for status in ("HIT", "MISS", "BYPASS"):
        shown = traffic.total(traffic.value("Requests by cache status", status))
        assert shown == pytest.approx(count(traffic.answers, cache=status), rel=0.05)


def test_slow_answers_are_in_the_high_percentiles(traffic: Traffic) -> None:
    """Only lower limits, since a busy machine makes anything slower."""
    title = "Upstream: connect, header, response"
    for name in ("header", "response"):
        p50 = traffic.value(title, f"{name} p50", "/info")
        assert p50 <= traffic.value(title, f"{name} p95", "/info") > LE_BELOW_SLOW
    latency = [
        traffic.value("Latency clients see", name, "/info") for name in ("p50", "p95", "p99")
    ]
    assert latency == sorted(latency)
    assert latency[1] > LE_BELOW_SLOW
    assert traffic.value("p95 latency") > LE_BELOW_SLOW


def test_flask_takes_the_time_that_it_slept_and_nginx_a_little_more(traffic: Traffic) -> None:
    title = "Seen by nginx and by Flask"
    slept = SLOW * SLEEPERS / count(traffic.answers, route="/info")
    flask = traffic.value(title, "seen by Flask", "/info")
    # nginx's times are whole milliseconds.
    assert slept * 0.95 < flask < traffic.value(title, "seen by nginx", "/info") + 0.001


def test_failed_attempts_are_shown_by_status(traffic: Traffic) -> None:
    failed = traffic.values("Failed attempts and retries", "{{status}}")
    answered = count(traffic.answers, status="500")
    assert traffic.total(failed["500"]) == pytest.approx(answered, rel=0.05)


def test_the_killed_worker_is_shown_with_its_alert(traffic: Traffic) -> None:
    exits = query_of("Worker exits", "{{reason}}")
    (series,) = over_time(traffic.stack, exits, traffic.started, time.time())
    assert series["metric"] == {"reason": "signal"}
    assert {value for _, value in series["values"]} == {"1"}
    active = traffic.stack.query(prepared(query_of("Active alerts"), {}))
    assert "WorkerKilled" in {alert["metric"]["alertname"] for alert in active}
    (firing,) = traffic.stack.query(prepared(query_of("Firing alerts"), {}))
    assert firing["value"] >= 1


def test_workers_are_shown_one_by_one(traffic: Traffic) -> None:
    shown = traffic.values("In flight by worker", "{{worker}} · {{instance}}")
    assert {name.split()[0] for name in shown} == {"1", "2", "3"}
    assert max(shown.values()) <= 1, "stuck"
    assert 0 < traffic.value("Worker utilisation") <= 1


def test_every_request_is_accounted_for(traffic: Traffic) -> None:
    title = "Where nginx's answers come from"
    hits = count(traffic.answers, cache="HIT")
    assert traffic.total(traffic.value(title, "the cache")) == pytest.approx(hits, rel=0.05)
    rest = count(traffic.answers, cache="(?!HIT).*", route="(?!none).*")
    assert traffic.total(traffic.value(title, "Flask")) == pytest.approx(rest, rel=0.05)

    title = "Passed on by nginx, counted by Flask"
    assert traffic.total(traffic.value(title, "nginx passed on")) == pytest.approx(rest, rel=0.05)
    counted = traffic.total(traffic.value(title, "Flask counted"), "flask-app")
    # Flask also got a request for an ETag, which nginx did not see.
    assert counted == pytest.approx(rest + 1, rel=0.05)


def test_all_targets_are_shown_as_up(traffic: Traffic) -> None:
    assert set(traffic.values("Targets", "{{job}}").values()) == {1}
    assert traffic.value("Targets down") == 0
