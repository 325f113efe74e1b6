"""What nginx, the access exporter and Flask have counted, to be compared to the last request."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from tests.stacks import ComposeStack, Stack, settle, wait_until

EXPORTER = "nginx-access-exporter"
QUIET = 3.0  # seconds without a new line in the log; nginx writes its buffer once a second
# nginx refuses an odd version or transfer coding with these: a client's fault.
REFUSED_BY_NGINX = ("501", "505")

SCRAPES = '{job=~"nginx-proxy|nginx-exporter"}'  # those that nginx answers and counts

Samples = list[tuple[dict[str, str], float]]


@dataclasses.dataclass(frozen=True)
class Counts:
    """All counts."""

    at: float  # Unix time
    served: float  # nginx's own count
    lines: float  # of the metrics log
    malformed: float
    failed: float  # 5xx
    incomplete: float  # through no fault of the client
    answered: float  # by Flask
    refused: float  # by gunicorn, so that Flask has not seen it
    left: float  # the client left while nginx waited: Flask has got the request, or not
    refreshed: float  # in the background
    flask: float  # requests that Flask got

    def since(self, other: Counts) -> Counts:
        """What was counted after the other was taken."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Counts(*(mine - theirs for mine, theirs in pairs))


def settled(stack: Stack) -> Counts:
    """The counts, once nothing is in flight.

    Prometheus is paused meanwhile. nginx counts its scrapes, but does not log them.
    """

    def lines() -> float:
        return stack.total(EXPORTER, "nginx_access_exporter_lines_total")

    with _paused(stack, "prometheus"):
        settle(lines, QUIET, 60, "the last line of the log")
        assert stack.total("flask-app", "gunicorn_worker_requests_in_flight") == 0
        return _count(stack)


def settled_between_scrapes(stack: Stack) -> Counts:
    """The same, at a moment that interrupted no scrape of nginx: it would count before or after."""

    def attempt() -> Counts | None:
        counts = settled(stack)
        wait_until(
            lambda: stack.query(f"min(timestamp(up{SCRAPES})) > {counts.at}"),
            60,
            "the next scrapes",
        )
        interrupted = (
            f"timestamp(scrape_duration_seconds{SCRAPES} @ {counts.at:.3f})"
            f" + scrape_duration_seconds{SCRAPES} @ {counts.at:.3f} > {counts.at:.3f}"
        )
        return None if stack.query(interrupted) else counts

    return wait_until(attempt, 180, "a count between scrapes")


def scrapes(stack: Stack, counted: Counts, since: Counts) -> int:
    """How often Prometheus has asked nginx for its own counts between two of ours."""
    window = f"[{(counted.at - since.at) * 1000:.0f}ms] @ {counted.at:.3f}"
    found = stack.query(f"sum(count_over_time(up{SCRAPES}{window}))")
    return int(found[0]["value"])


def samples(stack: Stack, service: str) -> dict[str, Samples]:
    """The samples of a service's metrics, by name."""
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(stack.metrics(service)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def _count(stack: Stack) -> Counts:
    nginx, flask = samples(stack, EXPORTER), samples(stack, "flask-app")
    requests = nginx.get("nginx_route_requests_total", [])
    attempts = nginx.get("nginx_route_upstream_attempts_total", [])
    incomplete = nginx.get("nginx_route_incomplete_responses_total", [])
    shed = flask.get("gunicorn_requests_shed_total", [])
    return Counts(
        at=time.time(),
        served=stack.total("nginx-exporter", "nginx_http_requests_total"),
        lines=_sum(nginx["nginx_access_exporter_lines_total"]),
        malformed=_sum(nginx["nginx_access_exporter_malformed_lines_total"]),
        failed=sum(value for labels, value in requests if _is_failure(labels)),
        incomplete=sum(value for labels, value in incomplete if labels["cause"] != "client"),
        answered=sum(value for labels, value in attempts if _is_routed(labels)),
        refused=sum(
            value
            for labels, value in attempts
            if not _is_routed(labels) and labels["status"].startswith("4")
        ),
        left=sum(value for labels, value in attempts if labels["status"] == "none"),
        refreshed=sum(value for labels, value in requests if labels["cache"] == "STALE"),
        # The health check is no traffic, but counts as shed if its client has left.
        flask=_sum(flask.get("flask_http_request_total", []))
        + sum(value for labels, value in shed if labels["route"] != "/flask-health-check"),
    )


def _sum(found: Samples) -> float:
    return sum(value for _, value in found)


def _is_failure(labels: dict[str, str]) -> bool:
    refused = labels["route"] == "none" and labels["status"] in REFUSED_BY_NGINX
    return labels["status"].startswith("5") and not refused


def _is_routed(labels: dict[str, str]) -> bool:
    """Whether the answer of an attempt had a route, so that it came from Flask."""
    return labels["route"] not in ("none", "static")


@contextlib.contextmanager
def _paused(stack: Stack, service: str) -> Iterator[None]:
    if isinstance(stack, ComposeStack):
        with stack.paused(stack.containers(service)[0]):
            yield
        return
    stack.kill(service, signal.SIGSTOP)
    try:
        yield
    finally:
        stack.kill(service, signal.SIGCONT)
