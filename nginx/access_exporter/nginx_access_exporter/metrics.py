"""Counts the lines of nginx's access metrics log and shows the counts as Prometheus metrics."""

import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, Self

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from nginx_access_exporter.line import OVERFLOW, MalformedLineError, Request, parse

# Upper bounds in milliseconds: nginx's clock has no finer ones.
BUCKETS_MS: Final = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
# For times whose percentiles people read: from 3 ms up, what Prometheus interpolates in a bucket is
# at most 25 % off. All the bounds above are here, too.
FINE_BUCKETS_MS: Final = (
    *(1, 2.5, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 25, 30, 36, 43, 50, 60, 72, 85, 100),
    *(120, 150, 180, 220, 250, 300, 360, 430, 500, 600, 720, 850, 1000),
    *(1200, 1500, 1800, 2200, 2500, 3000, 3600, 4300, 5000, 6000, 7200, 8500, 10000),
)

# A metric has at most this many label sets, so that memory stays bounded whatever an upstream or a
# client sends. Further label sets count together, with `overflow` in every label, so totals stay
# exact.
MAX_COUNTER_LABEL_SETS: Final = 1000
MAX_HISTOGRAM_LABEL_SETS: Final = 300

# Parsed lines are kept for the next time they appear. Clients choose the length of a method, so
# long lines are not kept.
KEPT_LINES: Final = 1024  # 0.8 MB
MAX_KEPT_LINE_BYTES: Final = 256

SECONDS_BETWEEN_MALFORMED_REPORTS: Final = 60
# A report shows this much of a malformed line, and of why it is one.
MAX_SAMPLE_LENGTH: Final = 200

logger = logging.getLogger(__name__)

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
        """Returns the metric as prometheus_client writes it."""
        family = CounterMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family

    def dump(self) -> dict[str, Any]:
        """Returns the counts in a form that JSON can hold."""
        return {"labels": self.labels, "values": [*self.values.items()]}

    def load(self, dumped: dict[str, Any]) -> None:
        """Takes over what `dump` returned; counts with other labels are left out."""
        if dumped["labels"] == [*self.labels]:
            self.values = {tuple(labels): value for labels, value in dumped["values"]}


class HistogramTable:
    """A histogram of times for each of a bounded number of label sets.

    Args:
        name: without `_bucket`.
        documentation: its HELP text.
        labels: names of the labels.
        buckets_ms: upper bounds of the buckets in milliseconds, ascending.
    """

    def __init__(
        self, name: str, documentation: str, labels: Iterable[str], buckets_ms: tuple[float, ...]
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        self.buckets_ms = buckets_ms
        # A count for each bucket alone, one for longer times, and the sum in milliseconds.
        self.values: dict[tuple[str, ...], list[int]] = {}

    def add(self, labels: tuple[str, ...], milliseconds: int, times: int) -> None:
        """Observes the same time `times` times."""
        if labels not in self.values and len(self.values) >= MAX_HISTOGRAM_LABEL_SETS:
            labels = (OVERFLOW,) * len(self.labels)
        row = self.values.setdefault(labels, [0] * (len(self.buckets_ms) + 2))
        row[bisect_left(self.buckets_ms, milliseconds)] += times
        row[-1] += milliseconds * times

    def family(self) -> Metric:
        """Returns the metric as prometheus_client writes it, in seconds."""
        bounds = [*(floatToGoString(bound / 1000) for bound in self.buckets_ms), "+Inf"]
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, row in self.values.items():
            buckets = list(zip(bounds, accumulate(row[:-1]), strict=True))
            family.add_metric(labels, buckets, row[-1] / 1000)
        return family

    def dump(self) -> dict[str, Any]:
        """Returns the counts in a form that JSON can hold."""
        values = [*self.values.items()]
        return {"labels": self.labels, "buckets_ms": self.buckets_ms, "values": values}

    def load(self, dumped: dict[str, Any]) -> None:
        """Takes over what `dump` returned; counts with other labels are left out.

        Counts in other buckets go to the bucket that holds the upper bound of theirs. So no counter
        goes down, which Prometheus would take for a restart, and new times are counted exactly.
        """
        if dumped["labels"] != [*self.labels]:
            return
        targets = [bisect_left(self.buckets_ms, bound) for bound in dumped["buckets_ms"]]
        targets.append(len(self.buckets_ms))
        for labels, (*counts, total_ms) in dumped["values"]:
            row = self.values[tuple(labels)] = [0] * (len(self.buckets_ms) + 2)
            row[-1] = total_ms
            for target, count in zip(targets, counts, strict=True):
                row[target] += count


class AccessMetrics:
    """All counts of the log."""

    def __init__(self) -> None:
        by_route = ("route",)
        by_cache = ("route", "cache")
        upstream = "nginx_route_upstream"
        self.lines = 0
        self.malformed_lines = 0
        self.requests = CounterTable(
            "nginx_route_requests",
            "Requests answered, by Flask URL rule, without health checks and status pages.",
            ("route", "method", "status", "cache"),
        )
        self.response_bytes = CounterTable(
            "nginx_route_response_bytes", "Bytes sent to clients, headers included.", by_cache
        )
        self.attempts = CounterTable(
            f"{upstream}_attempts",
            "Attempts to pass a request to an upstream server; status none where the client left "
            "before the server answered.",
            ("route", "status"),
        )
        self.incomplete = CounterTable(
            "nginx_route_incomplete_responses",
            "Responses that clients did not get in full; cause is who ended them: client, upstream "
            "or nginx.",
            ("route", "cache", "cause"),
        )
        self.duration = HistogramTable(
            "nginx_route_request_duration_seconds",
            "From the first byte read from the client to the last byte sent.",
            by_cache,
            FINE_BUCKETS_MS,
        )
        self.upstream_connect = HistogramTable(
            f"{upstream}_connect_duration_seconds",
            "Time to connect to the upstream, summed over all attempts; 0 on a kept connection.",
            by_route,
            BUCKETS_MS,
        )
        self.upstream_header = HistogramTable(
            f"{upstream}_header_duration_seconds",
            "Time until the upstream's response header arrived, summed over all attempts.",
            by_route,
            FINE_BUCKETS_MS,
        )
        self.upstream_response = HistogramTable(
            f"{upstream}_response_duration_seconds",
            "Time until the upstream's response ended, summed over all attempts.",
            by_route,
            BUCKETS_MS,
        )
        self._tables: tuple[CounterTable | HistogramTable, ...] = (
            self.requests,
            self.response_bytes,
            self.attempts,
            self.incomplete,
            self.duration,
            self.upstream_connect,
            self.upstream_header,
            self.upstream_response,
        )
        self._next_malformed_report = 0.0

    def add(self, text: bytes) -> None:
        """Counts whole lines, the last one without its newline."""
        # Counter counts equal lines in C, and most lines of cached traffic are equal.
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
        if request.incomplete:
            self.incomplete.add((route, cache, request.incomplete), times)
        for status in request.attempts:
            self.attempts.add((route, status), times)

    def _report_malformed(self, line: bytes, error: MalformedLineError) -> None:
        now = time.monotonic()
        if now < self._next_malformed_report:
            return
        self._next_malformed_report = now + SECONDS_BETWEEN_MALFORMED_REPORTS
        logger.warning(
            "malformed line, %d so far: %.*s: %r",
            self.malformed_lines,
            MAX_SAMPLE_LENGTH,
            error,
            line[:MAX_SAMPLE_LENGTH],
        )

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics as prometheus_client writes them."""
        for table in self._tables:
            yield table.family()
        yield CounterMetricFamily(
            "nginx_access_exporter_lines", "Lines read from the log.", value=self.lines
        )
        yield CounterMetricFamily(
            "nginx_access_exporter_malformed_lines",
            "Lines not in the log's format, which no other metric counts.",
            value=self.malformed_lines,
        )

    def dump(self) -> dict[str, Any]:
        """Returns everything counted, in a form that JSON can hold."""
        return {
            "lines": self.lines,
            "malformed_lines": self.malformed_lines,
            "tables": {it.name: it.dump() for it in self._tables},
        }

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> Self:
        """Restores what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: this version's `dump` does not return this.
        """
        metrics = cls()
        metrics.lines = dumped["lines"]
        metrics.malformed_lines = dumped["malformed_lines"]
        for table in metrics._tables:
            if table.name in dumped["tables"]:  # a new metric starts from 0
                table.load(dumped["tables"][table.name])
        return metrics
