"""What a line of the access metrics log is counted as."""

from __future__ import annotations

import json
import logging

import pytest
from prometheus_client.core import Metric

from nginx_access_exporter import metrics as access_metrics
from nginx_access_exporter.metrics import AccessMetrics, MalformedLineError, Request, parse

HIT = b"GET\t/cache-me\t200\tHIT\t0.000\t-\t-\t-\t-\t345"
UNCACHED = b"POST\t/users/<int:id>\t201\t-\t0.012\t0.001\t0.010\t0.011\t201\t512"


def line(**changed: str) -> bytes:
    """UNCACHED with other values in some fields."""
    names = (
        *("method", "route", "status", "cache", "duration"),
        *("connect", "header", "response", "upstream_status", "bytes"),
    )
    values = dict(zip(names, UNCACHED.decode().split("\t"), strict=True)) | changed
    return "\t".join(values.values()).encode()


def samples(metrics: AccessMetrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Sample name: label values in their order: value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    family: Metric
    for family in metrics.collect():
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_a_hit_has_no_upstream_times_and_no_attempts() -> None:
    assert parse(HIT) == Request(
        route="/cache-me",
        method="GET",
        status="200",
        cache="HIT",
        duration=0,
        upstream_connect=None,
        upstream_header=None,
        upstream_response=None,
        attempts=(),
        bytes_sent=345,
    )


def test_where_the_cache_has_no_say_its_status_is_none() -> None:
    assert parse(UNCACHED) == Request(
        route="/users/<int:id>",
        method="POST",
        status="201",
        cache="NONE",
        duration=12,
        upstream_connect=1,
        upstream_header=10,
        upstream_response=11,
        attempts=("201",),
        bytes_sent=512,
    )


def test_of_a_retried_request_times_are_summed_and_attempts_listed() -> None:
    request = parse(
        line(
            connect="0.001, 0.002 : 0.000",
            header="-, 0.020 : 0.001",
            response="2.000, 0.021 : 0.002",
            upstream_status="502, 304 : 200",
        )
    )
    assert request.upstream_connect == 3
    assert request.upstream_header == 21
    assert request.upstream_response == 2023
    assert request.attempts == ("502", "304", "200")


def test_an_internal_redirect_that_needed_no_server_ends_a_list() -> None:
    request = parse(line(header="0.010 : ", response="0.011 : ", upstream_status="200 : "))
    assert request.attempts == ("200",)
    assert request.upstream_response == 11


def test_a_gateway_timeout_has_an_attempt_and_no_header_time() -> None:
    request = parse(
        line(route="-", status="504", header="-", response="65.001", upstream_status="504")
    )
    assert request.route == "none"
    assert request.upstream_header is None
    assert request.upstream_response == 65001
    assert request.attempts == ("504",)


def test_an_attempt_cut_short_by_the_client_is_one_without_status() -> None:
    request = parse(line(route="-", status="499", header="-", upstream_status="-"))
    assert request.attempts == ("none",)


def test_a_request_that_nginx_answered_itself_is_one_of_no_route() -> None:
    request = parse(b"-\t-\t400\t-\t0.000\t-\t-\t-\t-\t302")
    assert (request.route, request.method, request.attempts) == ("none", "OTHER", ())


def test_methods_outside_the_standard_are_one() -> None:
    assert {parse(line(method=f"METHOD{n}")).method for n in range(100)} == {"OTHER"}
    assert parse(line(method="PATCH")).method == "PATCH"


@pytest.mark.parametrize(
    ("logged", "route"),
    [
        (r"/a\x22b\x5Cc", '/a"b\\c'),
        (r"/caf\xC3\xA9", "/café"),
        (r"/\xFF", "/\N{REPLACEMENT CHARACTER}"),
        ("/" + "x" * 8000, "overflow"),
    ],
)
def test_a_route_is_what_flask_calls_it(logged: str, route: str) -> None:
    assert parse(line(route=logged)).route == route


@pytest.mark.parametrize(
    "malformed",
    [
        b"",
        b"GET",
        HIT + b"\t",
        HIT[:-4],
        HIT + HIT,
        line(status="20"),
        line(status="2000"),
        line(cache="WARM"),
        line(duration="-"),
        line(duration="0.1"),
        line(duration="-0.001"),
        line(connect="0.001 0.002"),
        line(upstream_status="200, x"),
        line(bytes="many"),
        line(bytes="-5"),
        b"\0" * 100,
        b"\xff\xfe\t" * 10,
    ],
)
def test_what_is_not_in_the_format_is_malformed(malformed: bytes) -> None:
    with pytest.raises(MalformedLineError):
        parse(malformed)


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


def test_a_time_is_in_every_bucket_not_below_it() -> None:
    metrics = AccessMetrics()
    for duration in ("0.000", "0.001", "0.002", "0.003", "1.000", "10.000", "10.001"):
        metrics.add(line(duration=duration))
    buckets = samples(metrics)["nginx_route_request_duration_seconds_bucket"]
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
    total = samples(metrics)["nginx_route_request_duration_seconds_sum"]
    assert list(total.values()) == [21.007]


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
    assert counted["nginx_route_requests_total"][("overflow",) * 4] == 990


def test_long_lines_which_clients_can_make_are_not_kept() -> None:
    access_metrics._parse_and_keep.cache_clear()
    metrics = AccessMetrics()
    for n in range(100):
        metrics.add(line(method=f"{n:0500}"))
    assert metrics.lines == 100
    assert access_metrics._parse_and_keep.cache_info().currsize == 0


def test_malformed_lines_are_all_counted_and_now_and_then_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = AccessMetrics()
    with caplog.at_level(logging.WARNING):
        for n in range(1000):
            metrics.add(b"nonsense %d\n" % n + HIT)
    assert (metrics.lines, metrics.malformed_lines) == (2000, 1000)
    assert [record.getMessage() for record in caplog.records] == [
        "malformed line, 1 so far: not enough values to unpack (expected 10, got 1): b'nonsense 0'"
    ]


def test_counts_survive_being_kept_as_json() -> None:
    metrics = AccessMetrics()
    metrics.add(b"\n".join([HIT, UNCACHED, b"malformed"]))
    again = AccessMetrics.load(json.loads(json.dumps(metrics.dump())))
    assert samples(again) == samples(metrics)
    again.add(HIT)
    assert samples(again)["nginx_route_requests_total"]["/cache-me", "GET", "200", "HIT"] == 2


def test_counts_in_other_buckets_are_refused() -> None:
    dumped = AccessMetrics().dump()
    dumped["buckets_ms"].insert(8, 300)
    with pytest.raises(ValueError, match="other buckets"):
        AccessMetrics.load(dumped)
