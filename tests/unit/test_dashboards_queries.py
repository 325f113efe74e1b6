"""Results of the dashboards' less obvious queries, evaluated by promtool on scripted series."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from generator.annotations import ANNOTATIONS
from generator.signals import Signal, cache, monitoring, traffic, upstream, workers

Samples = dict[str, float]

VARIABLES = {
    "$route": ".+",
    "$instance": ".+",
    "$__rate_interval": "20s",
    "$__interval": "5s",
}


class Prometheus:
    """Evaluates PromQL on given series."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def expect(self, expr: str, samples: Samples, *, at: str, given: dict[str, str]) -> None:
        """Fail unless the expression has exactly these samples at that time.

        Args:
            expr: PromQL with the dashboards' variables.
            samples: value by series.
            at: time since the first value, such as `1m`.
            given: values by series, 5 s apart, in promtool's notation.
        """
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        test = {
            "interval": "5s",
            "input_series": [{"series": name, "values": v} for name, v in given.items()],
            "promql_expr_test": [
                {
                    "expr": expr,
                    "eval_time": at,
                    "exp_samples": [{"labels": s, "value": v} for s, v in samples.items()],
                }
            ],
        }
        path = self.folder / "queries.test.yml"
        path.write_text(yaml.safe_dump({"evaluation_interval": "5s", "tests": [test]}))
        done = subprocess.run(
            ["promtool", "test", "rules", path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def prometheus(tmp_path: Path) -> Prometheus:
    return Prometheus(tmp_path)


def query(signal: Signal) -> str:
    return signal.queries[0].expr


def annotation(name: str) -> str:
    return next(each for each in ANNOTATIONS if each.name == name).expr


def is_a_number(expr: str) -> str:
    """PromQL that is 1 where the expression is a number, 0 where it is NaN."""
    return f"({expr}) == bool ({expr})"


def test_no_requests_is_zero_while_the_exporter_is_up_and_no_data_while_it_is_down(
    prometheus: Prometheus,
) -> None:
    given = {'up{job="nginx-access-exporter"}': "1 1 0"}
    prometheus.expect(query(traffic.REQUEST_RATE), {"{}": 0}, at="5s", given=given)
    prometheus.expect(query(traffic.REQUEST_RATE), {}, at="10s", given=given)


ERRORS = {
    'route:nginx_requests:rate5m{route="/a"}': "1 0",
    'route:nginx_requests:rate5m{route="/b"}': "3 0",
    'route:nginx_errors:ratio_rate5m{route="/a"}': "0.5 stale",
    'route:nginx_errors:ratio_rate5m{route="/b"}': "0 stale",
}


def test_a_ratio_over_routes_is_weighted_by_their_requests(prometheus: Prometheus) -> None:
    prometheus.expect(query(traffic.ERROR_RATIO), {"{}": 0.125}, at="0s", given=ERRORS)


def test_without_traffic_a_ratio_is_not_a_number_rather_than_zero(prometheus: Prometheus) -> None:
    ratio = is_a_number(query(traffic.ERROR_RATIO))
    prometheus.expect(ratio, {"{}": 1}, at="0s", given=ERRORS)
    prometheus.expect(ratio, {"{}": 0}, at="5s", given=ERRORS)
    prometheus.expect(is_a_number(query(cache.HIT_RATIO)), {"{}": 0}, at="0s", given={})


def test_offload_leaves_out_routes_that_are_not_cached(prometheus: Prometheus) -> None:
    given = {
        'route:nginx_requests:rate5m{route="/cached"}': "10",
        'route:nginx_requests:rate5m{route="/other"}': "90",
        'route:nginx_cache_offload:ratio_rate5m{route="/cached"}': "0.8",
    }
    prometheus.expect(query(cache.OFFLOAD), {"{}": 0.8}, at="0s", given=given)


def test_percentiles_and_heatmaps_without_observations_are_empty(prometheus: Prometheus) -> None:
    metric = "nginx_route_request_duration_seconds"
    given = {
        f'{metric}_bucket{{route="/", le="0.1"}}': "7x9",
        f'{metric}_bucket{{route="/", le="+Inf"}}': "7x9",
        f'{metric}_count{{route="/"}}': "7x9",
    }
    prometheus.expect(query(traffic.LATENCY), {}, at="40s", given=given)
    prometheus.expect(query(traffic.LATENCY_HEATMAP), {}, at="40s", given=given)


def test_attempts_beyond_the_first_of_a_request_are_retries(prometheus: Prometheus) -> None:
    """10 requests succeed at once, 5 after a failed attempt; 5 clients leave before an answer."""
    attempts = 'nginx_route_upstream_attempts_total{route="/", status="%s"}'
    given = {
        attempts % 200: "0+15x9",
        attempts % 502: "0+5x9",
        attempts % "none": "0+5x9",
        'nginx_route_upstream_response_duration_seconds_count{route="/"}': "0+20x9",
    }
    retries = next(q.expr for q in upstream.FAILURES.queries if q.legend == "retries")
    prometheus.expect(retries, {"{}": 1}, at="40s", given=given)


def test_a_client_that_leaves_does_not_count_as_a_retry(prometheus: Prometheus) -> None:
    attempts = 'nginx_route_upstream_attempts_total{route="/", status="%s"}'
    given = {
        attempts % 200: "0+10x9",
        attempts % "none": "0+5x9",
        'nginx_route_upstream_response_duration_seconds_count{route="/"}': "0+15x9",
    }
    retries = next(q.expr for q in upstream.FAILURES.queries if q.legend == "retries")
    prometheus.expect(retries, {}, at="40s", given=given)


@pytest.mark.parametrize(
    ("signal", "name"),
    [
        (traffic.ERROR_RATIO, "error_ratio"),
        (traffic.P95, "request_p95_seconds"),
        (upstream.UPSTREAM_P95, "upstream_p95_seconds"),
    ],
)
def test_a_route_is_compared_with_its_own_threshold_and_the_overview_with_the_general_one(
    prometheus: Prometheus, signal: Signal, name: str
) -> None:
    given = {
        f"threshold:{name}": "1",
        f'threshold:{name}{{route="/report"}}': "5",
        f'route_threshold:{name}{{route="/report"}}': "5",
    }
    prometheus.expect(signal.limit.expr, {"{}": 1}, at="0s", given=given)
    own = signal.for_one_route().limit.expr.replace("$route", "/report")
    prometheus.expect(own, {"{}": 5}, at="0s", given=given)


def test_a_route_without_a_cache_has_no_limit_of_its_hit_ratio(prometheus: Prometheus) -> None:
    given = {
        f'route_threshold:cache_miss_ratio{{route="{route}"}}': "0.4" for route in ("/a", "/b")
    } | {'route:nginx_cache_lookups:rate5m{route="/a"}': "1"}
    limit = cache.HIT_RATIO.for_one_route().limit.expr
    prometheus.expect(limit.replace("$route", "/a"), {"{}": 0.6}, at="0s", given=given)
    prometheus.expect(limit.replace("$route", "/b"), {}, at="0s", given=given)


def test_a_worker_is_stuck_if_it_holds_a_request_and_answers_none_for_half_a_minute(
    prometheus: Prometheus,
) -> None:
    given = {'gunicorn_worker_threads{instance="a"}': "4x20"}
    for worker, in_flight, answered in (
        ("idle", "0x20", "5x20"),
        ("busy", "1x20", "0+2x20"),
        ("full", "4x20", "0+2x20"),
        ("stuck", "2x20", "5x20"),
        ("woken", "0x16 1x3", "5x20"),  # idle until 5 s ago
        ("gone", "0x20", "5x20"),  # a slot without a process, as after a reload
    ):
        labels = f'instance="a", worker="{worker}"'
        if worker != "gone":
            given[f"gunicorn_worker_start_time_seconds{{{labels}}}"] = "9x20"
        given[f"gunicorn_worker_requests_in_flight{{{labels}}}"] = in_flight
        given[f"gunicorn_worker_requests_total{{{labels}}}"] = answered
    expected = {
        '{instance="a", worker="idle"}': 0,
        '{instance="a", worker="busy"}': 0.25,
        '{instance="a", worker="full"}': 1,
        '{instance="a", worker="stuck"}': workers.STUCK + 0.5,
        '{instance="a", worker="woken"}': 0.25,
    }
    prometheus.expect(query(workers.BUSY_WORKERS), expected, at="90s", given=given)


def test_the_alert_that_always_fires_is_not_shown(prometheus: Prometheus) -> None:
    given = {
        'ALERTS{alertname="Watchdog", alertstate="firing", severity="info"}': "1",
        'ALERTS_FOR_STATE{alertname="Watchdog", severity="info"}': "0",
    }
    prometheus.expect(query(monitoring.FIRING), {"{}": 0}, at="0s", given=given)
    prometheus.expect(query(monitoring.ALERTS), {}, at="0s", given=given)


def test_active_alerts_have_their_age_as_value(prometheus: Prometheus) -> None:
    alert = 'alertname="Slow", severity="page", route="/"'
    given = {
        f'ALERTS{{{alert}, alertstate="pending"}}': "_ 1 1 stale",
        f'ALERTS{{{alert}, alertstate="firing"}}': "_ _ _ 1 1",
        f"ALERTS_FOR_STATE{{{alert}}}": "_ 5 5 5 5",
    }
    pending, firing = (f'{{{alert}, alertstate="{state}"}}' for state in ("pending", "firing"))
    prometheus.expect(query(monitoring.ALERTS), {pending: 5}, at="10s", given=given)
    prometheus.expect(query(monitoring.ALERTS), {firing: 15}, at="20s", given=given)
    prometheus.expect(query(monitoring.FIRING), {"{}": 1}, at="20s", given=given)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        (
            "Alerts",
            {'ALERTS{alertname="Slow", alertstate="firing", severity="page"}': "_ _ _ 1x9"},
        ),
        ("Reloads", {"nginx_worker_process_id": "7 7 7 9x9"}),
        (
            "Worker failures",
            {'instance_reason:gunicorn_worker_exits:increase1m{reason="signal"}': "0 0 0 1x9"},
        ),
    ],
)
def test_an_annotation_is_only_where_an_event_begins(
    prometheus: Prometheus, name: str, given: dict[str, str]
) -> None:
    begun = f"count({annotation(name)})"
    prometheus.expect(begun, {}, at="10s", given=given)
    prometheus.expect(begun, {"{}": 1}, at="15s", given=given)
    prometheus.expect(begun, {}, at="20s", given=given)


def test_only_all_workers_starting_together_is_a_restart(prometheus: Prometheus) -> None:
    start = 'gunicorn_worker_start_time_seconds{instance="a", worker="%s"}'
    given = {
        start % 1: "100 700 700x2",
        start % 2: "101.5 702 702x2",
        start % 3: "102 700 730 stale",
        'gunicorn_workers_configured{instance="a"}': "3x3",
    }
    restarts = annotation("Restarts")
    prometheus.expect(restarts, {'{instance="a"}': 100_000}, at="0s", given=given)
    prometheus.expect(restarts, {'{instance="a"}': 700_000}, at="5s", given=given)
    for one_is_replaced in ("10s", "15s"):
        prometheus.expect(restarts, {}, at=one_is_replaced, given=given)


def test_planned_exits_of_workers_are_not_annotated_as_failures(prometheus: Prometheus) -> None:
    given = {'instance_reason:gunicorn_worker_exits:increase1m{reason="exit"}': "0 1 1"}
    prometheus.expect(annotation("Worker failures"), {}, at="5s", given=given)
