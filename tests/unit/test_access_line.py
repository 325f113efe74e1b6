"""How the exporter parses a line of the access metrics log."""

from __future__ import annotations

import pytest

from nginx_access_exporter.line import MalformedLineError, Request, parse
from tests.access_lines import HIT, UNCACHED, line


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
        incomplete=None,
    )


def test_a_request_outside_the_cache_has_cache_status_none() -> None:
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
        incomplete=None,
    )


def test_times_of_a_retried_request_are_summed_and_its_attempts_listed() -> None:
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


def test_a_list_may_end_with_an_internal_redirect_that_needed_no_server() -> None:
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


def test_an_attempt_that_the_client_ended_has_no_status() -> None:
    request = parse(line(route="-", status="499", header="-", upstream_status="-"))
    assert request.attempts == ("none",)


def test_a_request_that_nginx_answered_itself_has_no_route() -> None:
    request = parse(b"nam/2\t-\t-\t400\t-\t0.000\t-\t-\t-\t-\t302\tOK\t-\t-")
    assert (request.route, request.method, request.attempts) == ("none", "OTHER", ())


def test_methods_outside_the_standard_share_one_label() -> None:
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
def test_a_route_is_unescaped_and_bounded_in_length(logged: str, route: str) -> None:
    assert parse(line(route=logged)).route == route


@pytest.mark.parametrize(
    "malformed",
    [
        b"",
        b"GET",
        b"nam/2",
        HIT + b"\t",
        HIT.rpartition(b"\t")[0],
        HIT + HIT,
        line(status="20"),
        line(status="2000"),
        line(cache="WARM"),
        line(duration="-"),
        line(duration="0.1"),
        line(duration="-0.001"),
        line(duration="9" * 400 + ".000"),
        line(status="\u0662\u0660\u0661"),
        line(connect="0.001 0.002"),
        line(upstream_status="200, x"),
        line(bytes="many"),
        line(bytes="-5"),
        line(bytes="9" * 5000),
        line(completion="-"),
        line(received="some"),
        line(marker="nam/1"),
        line(marker="nam/20"),
        line(marker=""),
        HIT.partition(b"\t")[2],
        b"\0" * 100,
        b"\xff\xfe\t" * 10,
    ],
)
def test_a_line_in_another_format_is_malformed(malformed: bytes) -> None:
    with pytest.raises(MalformedLineError):
        parse(malformed)


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({}, None),
        ({"received": "299"}, "upstream"),
        ({"received": "0"}, "upstream"),
        ({"received": "301"}, None),
        # Only the last attempt's body counts.
        ({"received": "0, 300"}, None),
        ({"received": "0 : 300"}, None),
        ({"received": "300, 0 : 299"}, "upstream"),
        # Without an announced length, as of a chunked body, nginx cannot know.
        ({"announced": "-", "received": "100"}, None),
        ({"announced": "abc", "received": "100"}, None),
        ({"announced": "9" * 5000}, None),
        # These have no body.
        ({"method": "HEAD", "received": "0"}, None),
        ({"status": "304", "upstream_status": "304", "received": "0"}, None),
        # The body comes from the cache.
        ({"cache": "REVALIDATED", "upstream_status": "304", "received": "0"}, None),
        ({"cache": "STALE", "header": "-", "upstream_status": "502", "received": "0"}, None),
        ({"cache": "HIT", "response": "-", "upstream_status": "-", "received": "-"}, None),
        ({"cache": "MISS", "received": "299"}, "upstream"),
        # The client left.
        ({"status": "499", "completion": "", "bytes": "0", "announced": "-"}, "client"),
        ({"method": "HEAD", "status": "499", "completion": "", "bytes": "0"}, "client"),
        ({"completion": "", "received": "100"}, "client"),
        ({"cache": "HIT", "completion": "", "received": "-"}, "client"),
        # nginx sent nothing: it could not write to its cache.
        ({"cache": "MISS", "completion": "", "bytes": "0", "received": "0"}, "nginx"),
        ({"cache": "EXPIRED", "completion": "", "bytes": "0", "received": "299"}, "nginx"),
        ({"cache": "MISS", "completion": "", "bytes": "0", "announced": "-"}, "nginx"),
        # The client had left: nginx had nothing to write, or has written it.
        ({"cache": "MISS", "completion": "", "bytes": "0"}, "client"),
        ({"cache": "HIT", "completion": "", "bytes": "0", "received": "-"}, "client"),
        ({"cache": "STALE", "completion": "", "bytes": "0", "received": "-"}, "client"),
        ({"method": "HEAD", "cache": "MISS", "completion": "", "bytes": "0"}, "client"),
        ({"status": "400", "completion": "", "bytes": "0", "upstream_status": "-"}, "client"),
        ({"status": "408", "completion": "", "bytes": "0", "upstream_status": "-"}, "client"),
        # nginx failed after the header, which is all that a HEAD request asks for.
        ({"method": "HEAD", "cache": "MISS", "completion": "", "received": "0"}, None),
    ],
)
def test_a_response_is_incomplete_if_the_client_missed_a_part(
    changed: dict[str, str], cause: str | None
) -> None:
    assert parse(line(**changed)).incomplete == cause


def test_the_reason_for_a_malformed_line_says_what_was_expected() -> None:
    with pytest.raises(MalformedLineError, match="the line does not begin with nam/2"):
        parse(b"nonsense")
    with pytest.raises(MalformedLineError, match="expected 13 fields after the marker, found 12"):
        parse(HIT.rpartition(b"\t")[0])
