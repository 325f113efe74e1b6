"""What nginx, the access exporter and Flask have counted, to be compared to the last request."""

from __future__ import annotations

import dataclasses
import time

from prometheus_client.parser import text_string_to_metric_families

from tests.stacks import Stack, settle, wait_until

EXPORTER = "nginx-access-exporter"
QUIET = 3.0  # seconds without a new line in the log; nginx writes its buffer once a second
# nginx refuses an odd version or transfer coding with these: a client's fault.
REFUSED_BY_NGINX = ("501", "505")

NEAR = 2.0  # seconds: a scrape may take as long on a busy machine

Samples = list[tuple[dict[str, str], float]]


@dataclasses.dataclass(frozen=True)
class Counts:
    """All counts."""

    lines: float  # of the metrics log
    malformed: float
    failed: float  # 5xx
    incomplete: float  # through no fault of the client
    answered: float  # by Flask
    refused: float  # by gunicorn, so that Flask has not seen it
    left: float  # the client left while nginx waited: Flask has got the request, or not
    refreshed: float  # in the background
    flask: float  # requests that Flask got
    served: float = 0  # nginx's own count
    at: float = 0  # its Unix time

    def since(self, other: Counts) -> Counts:
        """What was counted after the other was taken."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Counts(*(mine - theirs for mine, theirs in pairs))


def settled(stack: Stack) -> Counts:
    """The counts, once nothing is in flight. nginx's own count is from the next scrape."""

    def lines() -> float:
        return stack.total(EXPORTER, "nginx_access_exporter_lines_total")

    settle(lines, QUIET, 60, "the last line of the log")
    in_flight = "gunicorn_worker_requests_in_flight"
    # A health check is a request in flight, too.
    wait_until(lambda: stack.total("flask-app", in_flight) == 0, 30, "no request in flight")
    counts = _count(stack)
    at, served = _next_scrape(stack, "nginx_http_requests_total", time.time())
    return dataclasses.replace(counts, at=at, served=served)


def scrapes(stack: Stack, counted: Counts, since: Counts) -> range:
    """How often Prometheus has asked nginx for its own counts between two of ours.

    nginx counts these requests, but does not log them. The result is a range: a failed scrape may
    or may not have reached nginx, and one at about the time of our count may or may not be in it.
    """
    # Prometheus stores a scrape when it ends. Once this one is stored, all earlier ones are.
    _next_scrape(stack, 'up{job="nginx-proxy"}', counted.at)
    certain = uncertain = 0
    for job in ("nginx-exporter", "nginx-proxy"):
        for at, up in _scrapes(stack, f'up{{job="{job}"}}', since.at - NEAR, counted.at + NEAR):
            near = job == "nginx-proxy" and min(abs(at - since.at), abs(at - counted.at)) < NEAR
            if near or (up == 0 and since.at < at < counted.at):
                uncertain += 1
            elif since.at < at <= counted.at:
                certain += 1
    return range(certain, certain + uncertain + 1)


def _next_scrape(stack: Stack, series: str, after: float) -> tuple[float, float]:
    return wait_until(
        lambda: min(_scrapes(stack, series, after, after + 60), default=None), 60, "a scrape"
    )


def _scrapes(stack: Stack, series: str, begin: float, end: float) -> list[tuple[float, float]]:
    """The Unix times of scrapes, and the value that each found."""
    query = f"{series}[{(end - begin) * 1000:.0f}ms] @ {end:.3f}"
    found = stack.api("query", query=query, timeout=10)["result"]
    return [(at, float(value)) for series in found for at, value in series["values"]]


def samples(stack: Stack, service: str) -> dict[str, Samples]:
    """The samples of a service's metrics, by name."""
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(stack.metrics(service)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def failures(nginx: dict[str, Samples]) -> Samples:
    """The failed answers that the exporter's samples count, by their labels."""
    answers = nginx.get("nginx_route_requests_total", [])
    return [(labels, value) for labels, value in answers if _is_failure(labels)]


def _count(stack: Stack) -> Counts:
    nginx, flask = samples(stack, EXPORTER), samples(stack, "flask-app")
    answers = nginx.get("nginx_route_requests_total", [])
    attempts = nginx.get("nginx_route_upstream_attempts_total", [])
    incomplete = nginx.get("nginx_route_incomplete_responses_total", [])
    shed = flask.get("gunicorn_requests_shed_total", [])
    return Counts(
        lines=_sum(nginx["nginx_access_exporter_lines_total"]),
        malformed=_sum(nginx["nginx_access_exporter_malformed_lines_total"]),
        failed=_sum(failures(nginx)),
        incomplete=sum(value for labels, value in incomplete if labels["cause"] != "client"),
        answered=sum(value for labels, value in attempts if _is_routed(labels)),
        refused=sum(
            value
            for labels, value in attempts
            if not _is_routed(labels) and labels["status"].startswith("4")
        ),
        left=sum(value for labels, value in attempts if labels["status"] == "none"),
        refreshed=sum(value for labels, value in answers if labels["cache"] == "STALE"),
        flask=_sum(flask.get("flask_http_request_total", [])) + _sum(shed),
    )


def _sum(found: Samples) -> float:
    return sum(value for _, value in found)


def _is_failure(labels: dict[str, str]) -> bool:
    refused = labels["route"] == "none" and labels["status"] in REFUSED_BY_NGINX
    return labels["status"].startswith("5") and not refused


def _is_routed(labels: dict[str, str]) -> bool:
    """Whether the answer of an attempt had a route, so that it came from Flask."""
    return labels["route"] not in ("none", "static")
