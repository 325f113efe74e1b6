"""Asks a running Grafana whether it shows what the repository says, and whether nobody can edit it.

python -m tests.grafana_check [--grafana URL] [--app URL]      needs Python's requests, nothing else

Each check is a function; tests/e2e/test_grafana.py runs the same ones. `check_figures` sends a few
requests to the app and compares them with the results of the dashboards' queries. Nobody else
should send requests to `/cache-me`, `/info` or paths without a route meanwhile.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

FILES = sorted((Path(__file__).resolve().parents[1] / "grafana" / "dashboards").glob("*.json"))
DASHBOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in FILES}
HOME = "stack-overview"
FOLDER = "stack"

STEP = 5  # seconds: the scrape interval
TIMEOUT = 30  # seconds, for one answer
# Grafana's frontend replaces these before it sends a query; its server replaces $__rate_interval.
FRONTEND_VALUES = {
    "$stack": ".*",
    "$route": ".+",
    "$instance": ".+",
    "$busiest": ".+",
    "$cached": ".+",
}
# Seconds: the window of the overview's rates by route and by cache status.
RATE_WINDOW = 60
REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class CheckError(AssertionError):
    """A check failed; the message names the request and what it returned."""


def expect(condition: object, message: str) -> None:
    """Raise CheckError with the message unless the condition holds."""
    if not condition:
        raise CheckError(message)


class Grafana:
    """A Grafana, asked as an anonymous viewer; the URL has no slash at the end."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:  # noqa: ANN401
        """Send a request; its answer may have any status."""
        return requests.request(method, self.url + path, timeout=TIMEOUT, **options)

    def get(self, path: str) -> Any:  # noqa: ANN401
        """The JSON that a path returns.

        Raises:
            CheckError: the status is not 200.
        """
        answer = self.ask("GET", path)
        expect(answer.ok, f"GET {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def query(
        self, expression: str, *, start: float | None = None
    ) -> list[tuple[dict[str, str], list[float]]]:
        """What the Prometheus data source answers: labels and values of each series.

        Args:
            expression: PromQL, with Grafana's variables in it.
            start: Unix time of the first value, with one every STEP seconds; None for one value.
        """
        for name, value in FRONTEND_VALUES.items():
            expression = expression.replace(name, value)
        now = time.time()
        target = {
            "refId": "A",
            "datasource": {"type": "prometheus", "uid": "prometheus"},
            "expr": expression,
            "range": start is not None,
            "instant": start is None,
            "format": "time_series",
            "intervalMs": STEP * 1000,
            "maxDataPoints": 1000,
        }
        span = {
            "from": str(int((start or now - 300) * 1000)),
            "to": str(int(now * 1000)),
        }
        answer = self.ask("POST", "/api/ds/query", json={"queries": [target], **span})
        expect(answer.ok, f"{expression}: {answer.status_code} {answer.text[:500]}")
        frames = answer.json()["results"]["A"]["frames"]
        return [
            (field.get("labels") or {}, [value or 0 for value in values])
            for frame in frames
            for field, values in zip(
                frame["schema"]["fields"], frame["data"]["values"], strict=True
            )
            if field["type"] == "number"
        ]


def check_health(grafana: Grafana) -> None:
    """Grafana and its database answer."""
    expect(grafana.get("/api/health")["database"] == "ok", "the database is not ok")


def check_dashboards(grafana: Grafana) -> None:
    """Grafana has every dashboard of the repository by uid, in its folder, equal to its file."""
    for uid, file in DASHBOARDS.items():
        found = grafana.get(f"/api/dashboards/uid/{uid}")
        expect(found["meta"]["folderUid"] == FOLDER, f"{uid} is in {found['meta']['folderUid']}")
        for key in ("title", "panels", "templating", "annotations"):
            titles = [panel["title"] for panel in found["dashboard"]["panels"]]
            expect(found["dashboard"][key] == file[key], f"{uid}: {key} differs ({titles})")
    listed = {each["uid"] for each in grafana.get(f"/api/search?folderUIDs={FOLDER}")}
    expect(listed == set(DASHBOARDS), f"the folder {FOLDER} has {sorted(listed)}")


def check_home(grafana: Grafana) -> None:
    """Grafana opens with the overview."""
    title = grafana.get("/api/dashboards/home")["dashboard"]["title"]
    expect(title == DASHBOARDS[HOME]["title"], f"the home page is {title!r}")


def check_data_sources(grafana: Grafana) -> None:
    """Prometheus is healthy, and Alertmanager and the alert rules answer through Grafana."""
    health = grafana.get("/api/datasources/uid/prometheus/health")
    expect(health["status"] == "OK", f"Prometheus: {health}")
    # This data source has no health endpoint.
    status = grafana.get("/api/alertmanager/alertmanager/api/v2/status")
    expect(status.get("versionInfo") or status.get("config"), f"Alertmanager: {status}")
    groups = grafana.get("/api/prometheus/prometheus/api/v1/rules?type=alert")["data"]["groups"]
    names = {rule["name"] for group in groups for rule in group["rules"]}
    expect("Watchdog" in names, f"alert rules through Grafana: {sorted(names)}")


def check_alerts(grafana: Grafana, *, within: float = 90) -> None:
    """The alert that always fires reaches Alertmanager, as Grafana shows it.

    Args:
        grafana: the Grafana to ask.
        within: seconds; Prometheus can fire the alert before it has found Alertmanager, and sends
            it again after a minute (--rules.alert.resend-delay).
    """

    def watchdog() -> bool:
        alerts = grafana.get("/api/alertmanager/alertmanager/api/v2/alerts")
        return "Watchdog" in {alert["labels"]["alertname"] for alert in alerts}

    wait_for(watchdog, within, "Watchdog in Alertmanager")


def check_queries(grafana: Grafana) -> None:
    """Every query of every panel, annotation and variable is answered without an error."""
    for uid, dashboard in DASHBOARDS.items():
        for where, expression in queries(dashboard):
            try:
                grafana.query(expression, start=time.time() - 300)
            except CheckError as error:
                raise CheckError(f"{uid}, {where}: {error}") from error
        for variable in dashboard["templating"]["list"]:
            try:
                check_variable(grafana, variable.get("definition", ""))
            except CheckError as error:
                raise CheckError(f"{uid}, variable {variable['name']}: {error}") from error


def check_variable(grafana: Grafana, definition: str) -> None:
    """Grafana answers the query of a dashboard's variable, if the variable has one."""
    if found := re.fullmatch(r"label_values\((.+), (\w+)\)", definition):
        path = f"/api/datasources/uid/prometheus/resources/api/v1/label/{found[2]}/values"
        grafana.get(f"{path}?match[]={quote(found[1])}")
    elif found := re.fullmatch(r"query_result\((.+)\)", definition):
        grafana.query(found[1].replace("$__range", "300s"))
    else:
        expect("(" not in definition, f"no check for the variable's query {definition!r}")


def queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The name and the PromQL of each query, of panels and annotations."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["target"]["expr"]


# Invalid on purpose: a Grafana that allows one of these answers 400 or 404 and changes nothing.
WRITES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("GET", "/api/admin/settings", {}),
    ("GET", "/api/users", {}),
    ("POST", "/api/dashboards/db", {}),
    ("POST", "/api/folders", {}),
    ("POST", "/api/annotations", {}),
    ("POST", "/api/snapshots", {}),
    ("POST", "/api/datasources", {}),
    ("DELETE", "/api/datasources/uid/no-such-data-source", {}),
    ("PUT", "/api/org/preferences", {"theme": "no-such-theme"}),
    ("PUT", "/api/user/preferences", {"theme": "no-such-theme"}),
    ("POST", "/api/serviceaccounts", {}),
    ("POST", "/api/v1/provisioning/contact-points", {}),
    ("POST", "/api/alertmanager/alertmanager/api/v2/silences", {}),
)


def check_nothing_is_writable(grafana: Grafana) -> None:
    """Without a login, nothing can be changed and no settings can be read."""
    for method, path, body in WRITES:
        answer = grafana.ask(method, path, json=body)
        expect(
            answer.status_code in REFUSED,
            f"{method} {path} without a login: {answer.status_code} {answer.text[:200]}",
        )


def check_default_password(grafana: Grafana) -> None:
    """Grafana's own default password is not valid."""
    answer = grafana.ask("GET", "/api/user", auth=("admin", "admin"))
    expect(
        answer.status_code == HTTPStatus.UNAUTHORIZED,
        f"admin:admin: {answer.status_code} {answer.text[:200]}",
    )


CHECKS: tuple[Callable[[Grafana], None], ...] = (
    check_health,
    check_dashboards,
    check_home,
    check_data_sources,
    check_alerts,
    check_queries,
    check_nothing_is_writable,
    check_default_password,
)

# With traffic

COUNTED = "sum by (route, status, cache) (nginx_route_requests_total)"
Answers = Counter[tuple[str, str, str]]  # by route, status and cache status


def send(app: str, times: int) -> Answers:
    """Send requests for hits, misses, uncached answers of Flask, and 404s; `times` of each kind."""
    new = f"{app}/cache-me?check={time.time_ns()}"
    kinds = {
        "/info": [f"{app}/info"] * times,
        "/cache-me": [new] * (times + 1) + [f"{new}-{number}" for number in range(times)],
        "unmatched": [f"{app}/no-such-path"] * times,
    }
    seen: Answers = Counter()
    for route, urls in kinds.items():
        for url in urls:
            answer = requests.get(url, timeout=TIMEOUT)
            cache = answer.headers.get("X-Cache-Status", "NONE")
            seen[route, str(answer.status_code), cache] += 1
    return seen


def counted(grafana: Grafana) -> Answers:
    """The current values of nginx's counters, read through Grafana."""
    found = grafana.query(COUNTED)
    return Counter(
        {(each["route"], each["status"], each["cache"]): int(values[-1]) for each, values in found}
    )


def check_figures(grafana: Grafana, app: str) -> None:
    """Counters through Grafana grow by exactly what is sent, and panels by route and status agree.

    Takes about two minutes. The panels show rates: their sum over time is the number of requests,
    to a few percent.

    Args:
        grafana: the Grafana to ask.
        app: the app's URL, through nginx.
    """
    before = counted(grafana)
    # A rate needs a series that exists already, so send a few of each kind first.
    before += send(app, 1)
    wait_for(lambda: counted(grafana) == before, 30, f"{dict(before)} counted")
    started = time.time()
    time.sleep(STEP + 1)  # a scrape in between
    sent = send(app, 20)
    wait_for(
        lambda: counted(grafana) - before == sent,
        30,
        lambda: f"sent {dict(sent)}, counted {dict(counted(grafana) - before)}",
    )
    time.sleep(RATE_WINDOW + 2 * STEP)  # after these the rates are 0 again
    for title, label, place in (
        ("Requests by route", "route", 0),
        ("Requests by cache status", "cache", 2),
    ):
        expected: Counter[str] = Counter()
        for key, number in sent.items():
            expected[key[place]] += number
        expected.pop("NONE", None)  # the panel shows only cacheable requests
        shown = added_up(grafana, title, started, label)
        for name, number in expected.items():
            expect(
                abs(shown.get(name, 0) - number) <= max(1, 0.1 * number),
                f"{title}: {name} adds up to {shown.get(name, 0):.1f}, sent were {number}",
            )


def added_up(grafana: Grafana, title: str, start: float, label: str) -> dict[str, float]:
    """The requests since `start` that an overview panel's rates imply, by legend or label."""
    (panel,) = (each for each in DASHBOARDS[HOME]["panels"] if each["title"] == title)
    found: dict[str, float] = {}
    for target in panel["targets"]:
        for labels, values in grafana.query(target["expr"], start=start):
            name = labels.get(label) or target["legendFormat"]
            found[name] = found.get(name, 0) + sum(values) * STEP
    return found


def wait_for(condition: Callable[[], bool], seconds: float, what: str | Callable[[], str]) -> None:
    """Check twice a second until the condition holds; raise CheckError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise CheckError(
                f"not within {seconds:g} s: {what if isinstance(what, str) else what()}"
            )
        time.sleep(0.5)


def main() -> int:
    """Run every check; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--grafana", default="http://localhost:3000", metavar="URL")
    parser.add_argument("--app", metavar="URL", help="through nginx; sends it about 100 requests")
    arguments = parser.parse_args()
    grafana = Grafana(arguments.grafana.rstrip("/"))
    checks = list(CHECKS)
    if arguments.app:
        checks.append(lambda each: check_figures(each, arguments.app.rstrip("/")))
    try:
        grafana.ask("GET", "/api/health")
    except requests.RequestException as error:
        print(f"no Grafana answers at {grafana.url}: {error}", file=sys.stderr)
        return 1
    failed = 0
    for check in checks:
        name = getattr(check, "__name__", "").replace("<lambda>", "check_figures")
        try:
            check(grafana)
        except (CheckError, requests.RequestException) as error:
            failed += 1
            print(f"FAILED {name}: {error}", file=sys.stderr)
        else:
            print(f"ok     {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
