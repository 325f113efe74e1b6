"""Counts the lines of nginx's access metrics log, and shows the counts as Prometheus metrics.

A line holds, tab separated: request method, X-Route of the upstream's answer, status, cache
status, request time, upstream connect, header and response time, upstream status, bytes sent.
nginx writes `-` for what a request did not have. Times are seconds with three decimals.
"""

import logging
import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, NamedTuple, Self

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

# nginx's clock has milliseconds: nothing finer is real.
BUCKETS_MS: Final = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
)
CACHE_STATUSES: Final = frozenset(
    ("HIT", "MISS", "EXPIRED", "STALE", "UPDATING", "REVALIDATED", "BYPASS")
)

# Label sets a metric may have. Whatever the upstream or a client invents, memory is bounded:
# what comes after these is counted under `overflow` in every label, so that totals stay exact.
MAX_COUNTER_LABEL_SETS: Final = 1000
MAX_HISTOGRAM_LABEL_SETS: Final = 200
OVERFLOW: Final = "overflow"
MAX_ROUTE_LENGTH: Final = 100

# Parsed lines kept for the next time they are met. Clients choose the length of a method, so a
# long line is not kept.
KEPT_LINES: Final = 4096
MAX_KEPT_LINE_BYTES: Final = 256

SECONDS_BETWEEN_MALFORMED_REPORTS: Final = 60

logger = logging.getLogger(__name__)


class MalformedLineError(ValueError):
    """A line that is not in the log's format."""


class Request(NamedTuple):
    """What one line says; times in milliseconds, None where the request had none."""

    route: str
    method: str
    status: str
    cache: str
    duration: int
    upstream_connect: int | None
    upstream_header: int | None
    upstream_response: int | None
    attempts: tuple[str, ...]
    bytes_sent: int


_STATUS = re.compile(r"\d{3}")
_TIME = re.compile(r"(\d+)\.(\d{3})")
_ESCAPED_BYTE = re.compile(rb"\\x([0-9A-F]{2})")
# ", " between the servers tried, " : " between before and after an internal redirect; nothing
# follows that where the second part needed no server.
_LIST_SEPARATOR = re.compile(r", | : ")


def parse(line: bytes) -> Request:
    """Reads one line of the log, without its newline.

    Raises:
        MalformedLineError: it is not in the log's format.
    """
    try:
        method, route, status, cache, duration, connect, header, response, statuses, size = (
            _unescape(field) for field in line.split(b"\t")
        )
        response_ms = _total_ms(response)
        # An attempt that the client's leaving ended has a time and no status.
        attempted = statuses != "-" or response_ms is not None
        attempts = _items(statuses) if attempted else []
        return Request(
            route=_route(route),
            method=method if method in METHODS else "OTHER",
            status=_status(status),
            cache="NONE" if cache == "-" else _cache(cache),
            duration=_ms(duration),
            upstream_connect=_total_ms(connect),
            upstream_header=_total_ms(header),
            upstream_response=response_ms,
            attempts=tuple("none" if it == "-" else _status(it) for it in attempts),
            bytes_sent=_bytes(size),
        )
    except ValueError as error:
        raise MalformedLineError(str(error)) from error


def _unescape(field: bytes) -> str:
    if b"\\" in field:
        field = _ESCAPED_BYTE.sub(lambda match: bytes.fromhex(match[1].decode()), field)
    return field.decode(errors="replace")


def _route(text: str) -> str:
    if text == "-":
        return "none"
    return text if len(text) <= MAX_ROUTE_LENGTH else OVERFLOW


def _status(text: str) -> str:
    if not _STATUS.fullmatch(text):
        raise ValueError(f"not a status: {text!r}")
    return text


def _cache(text: str) -> str:
    if text not in CACHE_STATUSES:
        raise ValueError(f"not a cache status: {text!r}")
    return text


def _bytes(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"not a size: {text!r}")
    return int(text)


def _ms(text: str) -> int:
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(f"not a time: {text!r}")
    return int(match[1] + match[2])


def _total_ms(times: str) -> int | None:
    known = [_ms(it) for it in _items(times) if it != "-"]
    return sum(known) if known else None


def _items(text: str) -> list[str]:
    return [it for it in _LIST_SEPARATOR.split(text) if it]


_parse_and_keep = lru_cache(KEPT_LINES)(parse)


class CounterTable:
    """A counter metric: a number for each of a bounded number of label sets.

    Args:
        name: without `_total`.
        documentation: its HELP text.
        labels: names of the labels.
    """

    def __init__(self, name: str, documentation: str, labels: Iterable[str]) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        self.values: dict[tuple[str, ...], int] = {}

    def add(self, labels: tuple[str, ...], amount: int) -> None:
        """Adds to the counter of these label values."""
        if labels not in self.values and len(self.values) >= MAX_COUNTER_LABEL_SETS:
            labels = (OVERFLOW,) * len(self.labels)
        self.values[labels] = self.values.get(labels, 0) + amount

    def family(self) -> Metric:
        """The metric as prometheus_client writes it."""
        family = CounterMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family


class HistogramTable:
    """A histogram of times for each of a bounded number of label sets.

    Args:
        name: without `_bucket`.
        documentation: its HELP text.
        labels: names of the labels.
    """

    def __init__(self, name: str, documentation: str, labels: Iterable[str]) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        # A count for each bucket alone and for what is above them all; last, the sum in ms.
        self.values: dict[tuple[str, ...], list[int]] = {}

    def add(self, labels: tuple[str, ...], milliseconds: int, times: int) -> None:
        """Observes the same time `times` times."""
        if labels not in self.values and len(self.values) >= MAX_HISTOGRAM_LABEL_SETS:
            labels = (OVERFLOW,) * len(self.labels)
        row = self.values.setdefault(labels, [0] * (len(BUCKETS_MS) + 2))
        row[bisect_left(BUCKETS_MS, milliseconds)] += times
        row[-1] += milliseconds * times

    def family(self) -> Metric:
        """The metric as prometheus_client writes it, in seconds."""
        bounds = [*(floatToGoString(bound / 1000) for bound in BUCKETS_MS), "+Inf"]
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, row in self.values.items():
            buckets = list(zip(bounds, accumulate(row[:-1]), strict=True))
            family.add_metric(labels, buckets, row[-1] / 1000)
        return family


class AccessMetrics:
    """All that is counted of the log."""

    def __init__(self) -> None:
        by_route = ("route",)
        by_cache = ("route", "cache")
        upstream = "nginx_route_upstream"
        self.lines = 0
        self.malformed_lines = 0
        self.requests = CounterTable(
            "nginx_route_requests",
            "Requests answered, by Flask URL rule; health checks and status pages left out.",
            ("route", "method", "status", "cache"),
        )
        self.response_bytes = CounterTable(
            "nginx_route_response_bytes", "Bytes sent to clients, headers included.", by_cache
        )
        self.attempts = CounterTable(
            f"{upstream}_attempts",
            "Requests passed to an upstream server, each try of a retried one counted; status "
            "none where the client left before there was one.",
            ("route", "status"),
        )
        self.duration = HistogramTable(
            "nginx_route_request_duration_seconds",
            "From the first byte read from the client to the last byte sent.",
            by_cache,
        )
        self.upstream_connect = HistogramTable(
            f"{upstream}_connect_duration_seconds",
            "Time to connect to the upstream, all tries of a request together; 0 on a kept one.",
            by_route,
        )
        self.upstream_header = HistogramTable(
            f"{upstream}_header_duration_seconds",
            "Time to the upstream's response header, all tries of a request together.",
            by_route,
        )
        self.upstream_response = HistogramTable(
            f"{upstream}_response_duration_seconds",
            "Time to the end of the upstream's response, all tries of a request together.",
            by_route,
        )
        self._tables: tuple[CounterTable | HistogramTable, ...] = (
            self.requests,
            self.response_bytes,
            self.attempts,
            self.duration,
            self.upstream_connect,
            self.upstream_header,
            self.upstream_response,
        )
        self._next_malformed_report = 0.0

    def add(self, text: bytes) -> None:
        """Counts whole lines, the last one without its newline."""
        # Counting equal lines in C is what makes this cheap: traffic from a cache repeats itself.
        for line, times in Counter(text.split(b"\n")).items():
            self.lines += times
            try:
                known = len(line) <= MAX_KEPT_LINE_BYTES
                request = _parse_and_keep(line) if known else parse(line)
            except MalformedLineError as error:
                self.malformed_lines += times
                self._report_malformed(line, error)
            else:
                self._add_request(request, times)

    def _add_request(self, request: Request, times: int) -> None:
        route, cache = request.route, request.cache
        self.requests.add((route, request.method, request.status, cache), times)
        self.response_bytes.add((route, cache), request.bytes_sent * times)
        self.duration.add((route, cache), request.duration, times)
        for table, milliseconds in (
            (self.upstream_connect, request.upstream_connect),
            (self.upstream_header, request.upstream_header),
            (self.upstream_response, request.upstream_response),
        ):
            if milliseconds is not None:
                table.add((route,), milliseconds, times)
        for status in request.attempts:
            self.attempts.add((route, status), times)

    def _report_malformed(self, line: bytes, error: MalformedLineError) -> None:
        now = time.monotonic()
        if now < self._next_malformed_report:
            return
        self._next_malformed_report = now + SECONDS_BETWEEN_MALFORMED_REPORTS
        logger.warning("malformed line, %d so far: %s: %r", self.malformed_lines, error, line[:200])

    def collect(self) -> Iterator[Metric]:
        """The metrics as prometheus_client writes them."""
        for table in self._tables:
            yield table.family()
        yield CounterMetricFamily(
            "nginx_access_exporter_lines", "Lines read from the log.", value=self.lines
        )
        yield CounterMetricFamily(
            "nginx_access_exporter_malformed_lines",
            "Lines read that are not in the log's format, and so counted nowhere else.",
            value=self.malformed_lines,
        )

    def dump(self) -> dict[str, Any]:
        """Everything counted, as JSON can hold it."""
        return {
            "buckets_ms": [*BUCKETS_MS],
            "lines": self.lines,
            "malformed_lines": self.malformed_lines,
            "tables": {it.name: [*it.values.items()] for it in self._tables},
        }

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> Self:
        """Makes again what `dump` gave.

        Raises:
            KeyError, TypeError, ValueError: it is not what this version dumps.
        """
        if dumped["buckets_ms"] != [*BUCKETS_MS]:
            raise ValueError(f"other buckets: {dumped['buckets_ms']}")
        metrics = cls()
        metrics.lines = dumped["lines"]
        metrics.malformed_lines = dumped["malformed_lines"]
        for table in metrics._tables:
            table.values = {tuple(labels): value for labels, value in dumped["tables"][table.name]}
        return metrics
