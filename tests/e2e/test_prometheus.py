"""What Prometheus sees of the stack."""

from __future__ import annotations

import re
import uuid

import pytest
import requests

from tests.stacks import Stack, wait_until

# Grafana is a target only if it runs.
JOBS = {
    "flask-app",
    "nginx-proxy",
    "nginx-exporter",
    "nginx-access-exporter",
    "prometheus",
    "alertmanager",
}


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
    found = wait_until(
        lambda: (data := stack.api("alertmanagers"))["activeAlertmanagers"] and data,
        30,
        "Prometheus to find Alertmanager",
    )
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
        ("nginx-access-exporter", "nginx_route_requests_total"),
    ],
)
def test_random_paths_are_one_route(stack: Stack, service: str, metric: str) -> None:
    for _ in range(20):
        requests.get(f"{stack.http}/{uuid.uuid4().hex}", timeout=10)

    def routes() -> set[str]:
        return set(re.findall(metric + r'{[^}]*route="([^"]+)"', stack.metrics(service)))

    wait_until(lambda: "unmatched" in routes(), 10, "them to be counted")
    assert routes() <= {"/", "/cache-me", "/info", "unmatched", "none"}
