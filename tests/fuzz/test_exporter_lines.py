"""Lines that nginx would never write: the exporter counts them as malformed, and goes on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nginx_access_exporter.exporter import AccessExporter
from nginx_access_exporter.line import MalformedLineError, parse
from nginx_access_exporter.metrics import AccessMetrics
from tests.access_lines import HIT, UNCACHED

# The same examples in every run, twice as many as by default.
repeatable = settings(max_examples=200, derandomize=True, deadline=None, database=None)

# What nginx writes into a field, and what it does not.
VALUES = st.one_of(
    st.sampled_from((b"-", b"", b"OK", b"GET", b"HIT", b"MISS", b"200", b"499", b"0.001", b"0")),
    st.sampled_from(
        (b"0.001, 0.002", b"502, 200 : -", b" : ", b", ", b"-, -", b"\\x", b"\\x00\\xFF")
    ),
    st.from_regex(rb"\d{1,30}(\.\d{3})?", fullmatch=True),
    st.from_regex(r"\d{3}|\d+\.\d{3}", fullmatch=True).map(str.encode),  # of any script
    st.binary(max_size=200).map(lambda it: it.replace(b"\n", b"").replace(b"\t", b"")),
    st.sampled_from((b"9" * 400 + b".000", b"9" * 5000, b"/" * 101, b"502, " * 500)),
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A valid line some of whose fields were replaced, removed, added or swapped; or any bytes."""
    fields = draw(st.sampled_from((HIT, UNCACHED))).split(b"\t")
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(fields)))
        fields[place : place + draw(st.sampled_from((0, 1, 1, 1, 2)))] = [draw(VALUES)]
    made = b"\t".join(fields)
    return draw(st.sampled_from((made, made[: draw(st.integers(0, len(made)))])))


LINES = st.one_of(lines(), st.binary(max_size=300)).map(lambda it: it.replace(b"\n", b""))


@repeatable
@given(LINES)
@example(UNCACHED.replace(b"\t201\t", "\t\u0662\u0660\u0661\t".encode()))  # digits, but not ASCII
def test_a_line_is_parsed_or_malformed(line: bytes) -> None:
    try:
        request = parse(line)
    except MalformedLineError:
        return
    assert request.status.isascii()
    assert request.duration >= 0
    assert request.bytes_sent >= 0


@repeatable
@given(st.lists(LINES, min_size=1, max_size=30))
@example([UNCACHED.replace(b"0.012", b"9" * 400 + b".000")])
def test_any_lines_are_counted_and_exported(some: list[bytes]) -> None:
    metrics = AccessMetrics()
    metrics.add(b"\n".join(some))
    exported = samples(metrics)
    assert exported["nginx_access_exporter_lines_total"] == len(some)
    malformed = exported["nginx_access_exporter_malformed_lines_total"]
    assert exported.get("nginx_route_requests_total", 0) == len(some) - malformed
    restored = AccessMetrics.load(json.loads(json.dumps(metrics.dump())))
    assert samples(restored) == exported


@repeatable
@given(st.lists(LINES, min_size=1, max_size=30))
def test_a_log_with_any_lines_is_read_to_its_end(some: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "access.log")
        log.write_bytes(b"\n".join([HIT, *some, HIT]) + b"\n")
        exporter = AccessExporter(log)
        exporter.start()
        exported = samples(exporter)
    assert exported["nginx_access_exporter_lines_total"] == len(some) + 2
    assert exported["nginx_access_exporter_backlog_bytes"] == 0


def samples(metrics: AccessMetrics | AccessExporter) -> dict[str, float]:
    """The sum of each metric's samples, as Prometheus would read them."""
    registry = CollectorRegistry()
    registry.register(metrics)
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums
