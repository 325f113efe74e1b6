"""What Prometheus knows of the stack."""

from __future__ import annotations

import re
import uuid

import pytest
import requests

from tests.stacks import Stack, wait_until

# Grafana is a target only where it runs.
JOBS = {
    "flask-app",
    "nginx-proxy",
    "nginx-exporter",
    "nginx-access-exporter",
    "prometheus",
    "alertmanager",
}
SCRAPE_INTERVAL = 5


def scraped_sum(stack: Stack, expression: str) -> float:
    """The value of an expression that sums to one sample; 0 where nothing has been counted yet."""
    return sum(sample["value"] for sample in stack.query(expression))


def test_every_target_is_up(stack: Stack) -> None:
    def jobs_up() -> bool:
        up = stack.query("up == 1")
        return {sample["metric"]["job"] for sample in up} >= JOBS and not stack.query("up == 0")

    wait_until(jobs_up, 30, "every target to be up")


def test_every_rule_evaluates(stack: Stack) -> None:
    def evaluated() -> list[dict[str, str]]:
        groups = requests.get(f"{stack.prometheus}/api/v1/rules", timeout=10).json()["data"][
            "groups"
        ]
        rules = [rule for group in groups for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else []

    rules = wait_until(evaluated, 90, "every rule to have been evaluated")
    assert [rule for rule in rules if rule["health"] != "ok"] == []


def test_prometheus_sends_alerts_to_alertmanager(stack: Stack) -> None:
    found = requests.get(f"{stack.prometheus}/api/v1/alertmanagers", timeout=10).json()["data"]
    assert len(found["activeAlertmanagers"]) == 1
    assert found["droppedAlertmanagers"] == []


def test_health_checks_are_not_counted_as_traffic(stack: Stack) -> None:
    for _ in range(3):
        requests.get(f"{stack.http}/flask-health-check", timeout=10)
        requests.get(f"{stack.http}/health-check", timeout=10)
    assert "health-check" not in stack.metrics("flask-app")
    assert "health-check" not in stack.metrics("nginx-access-exporter")


@pytest.mark.parametrize(
    ("service", "metric"),
    [
        ("flask-app", "flask_http_request_total"),
        ("nginx-access-exporter", "nginx_endpoint_requests_total"),
    ],
)
def test_random_paths_are_one_endpoint(stack: Stack, service: str, metric: str) -> None:
    for _ in range(20):
        requests.get(f"{stack.http}/{uuid.uuid4().hex}", timeout=10)

    def endpoints() -> set[str]:
        return set(re.findall(metric + r'{[^}]*endpoint="([^"]+)"', stack.metrics(service)))

    wait_until(lambda: "unmatched" in endpoints(), 10, "them to be counted")
    assert endpoints() <= {"/", "/cache-me", "/info", "unmatched", "none"}


def test_requests_are_conserved_to_the_last_one(stack: Stack) -> None:
    """What clients sent is what nginx counted; what went upstream is what Flask counted.

    No entry expires meanwhile, so that nginx refreshes nothing in the background.
    """
    nginx = "sum(nginx_endpoint_requests_total)"
    upstream = 'sum(nginx_endpoint_upstream_attempts_total{endpoint!="none"})'
    flask = "sum(flask_http_request_total)"
    entry = uuid.uuid4().hex
    paths = ["/", "/info", f"/{entry}", "/?status=500"] * 25 + [f"/cache-me?entry={entry}"] * 50

    # Requests of earlier tests are in the counts only after the next scrape.
    settled = wait_until(lambda: _settled(stack, (nginx, upstream, flask)), 40, "counts to settle")
    with requests.Session() as client:
        for path in paths:
            client.get(stack.http + path, timeout=10)

    def counted() -> bool:
        after = [scraped_sum(stack, each) for each in (nginx, upstream, flask)]
        grown = [now - before for now, before in zip(after, settled, strict=True)]
        return grown == [150, 101, 101]

    wait_until(counted, 8 * SCRAPE_INTERVAL, "150 requests, 101 of them upstream, to be counted")


def _settled(stack: Stack, expressions: tuple[str, ...]) -> list[float]:
    """The values of the expressions, if they did not change over the last two scrapes."""
    now = [scraped_sum(stack, each) for each in expressions]
    earlier = [
        scraped_sum(stack, each.replace(")", f" offset {2 * SCRAPE_INTERVAL}s)"))
        for each in expressions
    ]
    return now if now == earlier and all(now) else []
