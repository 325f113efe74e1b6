"""How the lines of the access metrics log are counted."""

from __future__ import annotations

import json
import logging
from bisect import bisect_left
from typing import Any

import pytest
from prometheus_client.core import Metric

from nginx_access_exporter import metrics as access_metrics
from nginx_access_exporter.line import OVERFLOW
from nginx_access_exporter.metrics import AccessMetrics
from tests.access_lines import HIT, UNCACHED, line


def samples(metrics: AccessMetrics) -> dict[str, dict[tuple[str, ...], float]]:
    """The values by sample name and label values."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    family: Metric
    for family in metrics.collect():
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_each_line_counts_once_in_every_metric() -> None:
    metrics = AccessMetrics()
    metrics.add(b"\n".join([HIT, UNCACHED, HIT, b"malformed", HIT]))
    counted = samples(metrics)
    assert counted["nginx_route_requests_total"] == {
        ("/cache-me", "GET", "200", "HIT"): 3,
        ("/users/<int:id>", "POST", "201", "NONE"): 1,
    }
    assert counted["nginx_route_response_bytes_total"] == {
        ("/cache-me", "HIT"): 3 * 345,
        ("/users/<int:id>", "NONE"): 512,
    }
    assert counted["nginx_route_upstream_attempts_total"] == {("/users/<int:id>", "201"): 1}
    assert counted["nginx_route_request_duration_seconds_count"] == {
        ("/cache-me", "HIT"): 3,
        ("/users/<int:id>", "NONE"): 1,
    }
    for part, seconds in (("connect", 0.001), ("header", 0.01), ("response", 0.011)):
        name = f"nginx_route_upstream_{part}_duration_seconds"
        assert counted[f"{name}_count"] == {("/users/<int:id>",): 1}
        assert counted[f"{name}_sum"] == {("/users/<int:id>",): seconds}
    assert counted["nginx_access_exporter_lines_total"] == {(): 5}
    assert counted["nginx_access_exporter_malformed_lines_total"] == {(): 1}


def test_a_time_counts_in_its_own_bucket_and_all_higher_ones() -> None:
    metrics = AccessMetrics()
    for connect in ("0.000", "0.001", "0.002", "0.003", "1.000", "10.000", "10.001"):
        metrics.add(line(connect=connect))
    name = "nginx_route_upstream_connect_duration_seconds"
    buckets = samples(metrics)[f"{name}_bucket"]
    assert {labels[-1]: count for labels, count in buckets.items()} == {
        "0.001": 2,
        "0.0025": 3,
        "0.005": 4,
        "0.01": 4,
        "0.025": 4,
        "0.05": 4,
        "0.1": 4,
        "0.25": 4,
        "0.5": 4,
        "1.0": 5,
        "2.5": 5,
        "5.0": 5,
        "10.0": 6,
        "+Inf": 7,
    }
    assert list(samples(metrics)[f"{name}_sum"].values()) == [21.007]


@pytest.mark.parametrize("name", ["request", "upstream_header"])
def test_percentiles_are_right_to_a_quarter_from_3_ms_up(name: str) -> None:
    metrics = AccessMetrics()
    metrics.add(line())
    buckets = samples(metrics)[f"nginx_route_{name}_duration_seconds_bucket"]
    *bounds, _ = (float(labels[-1]) for labels in buckets)
    for ms in range(3, 10_001):
        upper = bisect_left(bounds, ms / 1000)
        # The other times decide where in the bucket the rank is.
        for share in (0.001, 0.5, 1):
            shown = bounds[upper - 1] + share * (bounds[upper] - bounds[upper - 1])
            assert shown == pytest.approx(ms / 1000, rel=0.2501), ms


def test_the_fine_buckets_include_all_bounds_of_the_coarse_ones() -> None:
    assert set(access_metrics.BUCKETS_MS) < set(access_metrics.FINE_BUCKETS_MS)


def test_label_sets_are_bounded_and_totals_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_metrics, "MAX_COUNTER_LABEL_SETS", 10)
    monkeypatch.setattr(access_metrics, "MAX_HISTOGRAM_LABEL_SETS", 5)
    metrics = AccessMetrics()
    for n in range(1000):
        metrics.add(line(route=f"/{n}", upstream_status=f"{100 + n % 900}"))
    counted = samples(metrics)
    for name, known in (
        ("nginx_route_requests_total", 10),
        ("nginx_route_upstream_attempts_total", 10),
        ("nginx_route_request_duration_seconds_count", 5),
        ("nginx_route_upstream_header_duration_seconds_count", 5),
    ):
        assert len(counted[name]) == known + 1, name
        assert sum(counted[name].values()) == 1000, name
    assert counted["nginx_route_requests_total"][(OVERFLOW,) * 4] == 990


def test_long_lines_are_not_kept_since_clients_can_make_them() -> None:
    access_metrics._parse_and_keep.cache_clear()
    metrics = AccessMetrics()
    for n in range(100):
        metrics.add(line(method=f"{n:0500}"))
    assert metrics.lines == 100
    assert access_metrics._parse_and_keep.cache_info().currsize == 0


def test_malformed_lines_are_counted_and_one_a_minute_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = AccessMetrics()
    with caplog.at_level(logging.WARNING):
        for n in range(1000):
            metrics.add(b"nonsense\x1b %d\n" % n + HIT)
    assert (metrics.lines, metrics.malformed_lines) == (2000, 1000)
    assert [record.getMessage() for record in caplog.records] == [
        "malformed line, 1 so far: the line does not begin with nam/2: b'nonsense\\x1b 0'"
    ]


def test_the_report_of_a_malformed_line_is_short(caplog: pytest.LogCaptureFixture) -> None:
    metrics = AccessMetrics()
    with caplog.at_level(logging.WARNING):
        metrics.add(line(cache="\x1b" * 100_000))
    assert len(caplog.records) == 1
    assert len(caplog.records[0].getMessage()) < 2 * access_metrics.MAX_SAMPLE_LENGTH * len("\\x1b")
    assert "\x1b" not in caplog.records[0].getMessage()


def test_incomplete_responses_are_counted_by_cause() -> None:
    metrics = AccessMetrics()
    cut, left = line(received="1"), line(completion="")
    metrics.add(b"\n".join([HIT, UNCACHED, cut, cut, left]))
    assert samples(metrics)["nginx_route_incomplete_responses_total"] == {
        ("/users/<int:id>", "NONE", "upstream"): 2,
        ("/users/<int:id>", "NONE", "client"): 1,
    }


def saved(metrics: AccessMetrics) -> dict[str, Any]:
    """The counts as a checkpoint contains them."""
    return json.loads(json.dumps(metrics.dump()))


def test_counts_survive_being_saved_as_json() -> None:
    metrics = AccessMetrics()
    metrics.add(b"\n".join([HIT, UNCACHED, line(received="1"), b"malformed"]))
    again = AccessMetrics.load(saved(metrics))
    assert samples(again) == samples(metrics)
    again.add(HIT)
    assert samples(again)["nginx_route_requests_total"]["/cache-me", "GET", "200", "HIT"] == 2


def test_counts_in_other_buckets_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(access_metrics, "FINE_BUCKETS_MS", (100, 500, 20_000))
        metrics = AccessMetrics()
    for duration in ("0.040", "0.400", "0.400", "15.000", "90.000"):
        metrics.add(line(duration=duration))
    again = AccessMetrics.load(saved(metrics))
    counted = samples(again)
    name = "nginx_route_request_duration_seconds"
    labels = ("/users/<int:id>", "NONE")
    buckets = {le: n for (*_, le), n in counted[f"{name}_bucket"].items()}
    # Counts are exact at the bounds that both have. A time is never in a bucket below its own.
    assert (buckets["0.1"], buckets["0.5"], buckets["10.0"], buckets["+Inf"]) == (1, 3, 3, 5)
    assert (buckets["0.05"], buckets["0.25"]) == (0, 1)
    assert counted[f"{name}_sum"] == {labels: 105.84}
    assert counted[f"{name}_count"] == {labels: 5}

    again.add(line(duration="0.040"))
    assert samples(again)[f"{name}_bucket"][*labels, "0.05"] == 1


def test_counts_of_another_version_are_taken_over_as_far_as_they_fit() -> None:
    metrics = AccessMetrics()
    metrics.add(HIT)
    dumped = saved(metrics)
    del dumped["tables"]["nginx_route_response_bytes"]
    dumped["tables"]["nginx_route_upstream_attempts"] = {"labels": ["gone"], "values": [[["x"], 1]]}
    dumped["tables"]["nginx_route_later"] = {"labels": [], "values": []}
    again = samples(AccessMetrics.load(dumped))
    assert again["nginx_route_requests_total"] == {("/cache-me", "GET", "200", "HIT"): 1}
    assert "nginx_route_response_bytes_total" not in again
    assert "nginx_route_upstream_attempts_total" not in again
