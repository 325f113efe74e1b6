"""Every signal that the dashboards draw: its title, queries and unit, defined once.

Queries are written for the chosen route (`$route`) and replica (`$instance`) and read the
exporters' metrics. `Signal.for_all_routes` turns them into the overview's queries, which read
the totals that prometheus/rules/totals.yml records.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

ROUTE = 'route=~"$route"'
INSTANCE = 'instance=~"$instance"'
RATE = "$__rate_interval"

HIT = 'cache=~"HIT|STALE|UPDATING"'
MISS = 'cache=~"MISS|EXPIRED|BYPASS"'

NO_REQUESTS = "No requests in this time range"

# Thresholds that a route may override.
BY_ROUTE = {
    "cache_miss_ratio",
    "cache_offload_drop",
    "error_ratio",
    "request_p95_seconds",
    "traffic_guard_requests_per_second",
    "upstream_p95_seconds",
}

# The recording rule in prometheus/rules/totals.yml that has the total of each metric.
TOTALS = {
    "nginx_route_requests_total": "cache_status:nginx_requests:rate1m",
    "nginx_route_request_duration_seconds_bucket": (
        "cache_le:nginx_request_duration_seconds_bucket:rate1m"
    ),
    "nginx_route_response_bytes_total": "cache:nginx_response_bytes:rate1m",
    "nginx_route_upstream_attempts_total": "status:nginx_upstream_attempts:rate1m",
    "nginx_route_upstream_connect_duration_seconds_bucket": (
        "le:nginx_upstream_connect_duration_seconds_bucket:rate1m"
    ),
    "nginx_route_upstream_header_duration_seconds_bucket": (
        "le:nginx_upstream_header_duration_seconds_bucket:rate1m"
    ),
    "nginx_route_upstream_response_duration_seconds_bucket": (
        "le:nginx_upstream_response_duration_seconds_bucket:rate1m"
    ),
    "nginx_route_upstream_response_duration_seconds_count": (
        "stack:nginx_upstream_response_duration_seconds_count:rate1m"
    ),
    "nginx_route_upstream_response_duration_seconds_sum": (
        "stack:nginx_upstream_response_duration_seconds_sum:rate1m"
    ),
    "flask_http_request_duration_seconds_sum": (
        "instance:flask_http_request_duration_seconds_sum:rate1m"
    ),
    "flask_http_request_duration_seconds_count": (
        "instance:flask_http_request_duration_seconds_count:rate1m"
    ),
}
# Of each histogram by route: the rules in the same file that record percentiles over all routes.
PERCENTILES = {
    ("nginx_route_request_duration_seconds", ""): "nginx_request_duration_seconds",
    ("nginx_route_request_duration_seconds", HIT): "nginx_hit_duration_seconds",
    ("nginx_route_request_duration_seconds", MISS): "nginx_miss_duration_seconds",
} | {
    (f"nginx_route_upstream_{phase}_duration_seconds", ""): (
        f"nginx_upstream_{phase}_duration_seconds"
    )
    for phase in ("connect", "header", "response")
}
# Of each recorded ratio by route: the rate that weights it in an average over several routes, and
# the recorded ratio over all routes.
RATIOS = {
    "route:nginx_errors:ratio_rate5m": (
        "route:nginx_requests:rate5m",
        "job:nginx_errors:ratio_rate5m",
    ),
    "route:nginx_cache_hit:ratio_rate5m": (
        "route:nginx_cache_lookups:rate5m",
        "stack:nginx_cache_hit:ratio_rate5m",
    ),
    "route:nginx_cache_offload:ratio_rate5m": (
        "route:nginx_requests:rate5m",
        "stack:nginx_cache_offload:ratio_rate5m",
    ),
}
RATE_OF_ROUTE = re.compile(
    r'(?P<function>rate|increase)\((?P<metric>\w+)\{route=~"\$route"(?:, )?(?P<selector>[^}]*)\}'
    r"\[\$__rate_interval\]\)"
)
QUANTILE_OF_ROUTE = re.compile(
    r"histogram_quantile\((?P<q>[\d.]+), sum by \(le\) \(rate\((?P<metric>\w+)_bucket"
    r'\{route=~"\$route"(?:, )?(?P<selector>[^}]*)\}\[\$__rate_interval\]\)\)\) >= 0'
)


@dataclass(frozen=True)
class Query:
    """One PromQL query of a signal.

    Args:
        expr: PromQL, with Grafana's variables in it.
        legend: name of each resulting series; `{{label}}` stands for a label's value.
        threshold: whether the series is the limit an alert compares with, not a measurement.
        total: whether the series is a line over the stack of the others.
    """

    expr: str
    legend: str
    threshold: bool = False
    total: bool = False


@dataclass(frozen=True)
class Signal:
    """What one panel shows.

    Args:
        title: the panel's title.
        description: what it shows, what is normal, what to do when it is not.
        unit: a unit id of Grafana's, such as `reqps` or `s`.
        queries: what is drawn, in drawing order.
        empty: the text of an empty panel, which says why a healthy stack has no data here; None if
            there is always data.
        basis: the number of observations behind a stat, as words in the label `text`.
        colours: colour of a series by its name.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    empty: str | None = None
    basis: Query | None = None
    colours: Mapping[str, str] = field(default_factory=dict)

    @property
    def limit(self) -> Query | None:
        """The query of the alert's limit; None if no alert reads this signal."""
        return next((query for query in self.queries if query.threshold), None)

    def for_one_route(self) -> Self:
        """The signal with the thresholds that apply to the chosen route, not the general ones."""
        general, own = r'\bthreshold:(\w+)\{route=""\}', rf"route_threshold:\1{{{ROUTE}}}"
        queries = (replace(each, expr=re.sub(general, own, each.expr)) for each in self.queries)
        return replace(self, queries=tuple(queries))

    def for_all_routes(self) -> Self:
        """The signal over all routes, read from recorded totals."""
        queries = (replace(each, expr=_total(each.expr)) for each in self.queries)
        basis = self.basis and replace(self.basis, expr=_total(self.basis.expr))
        return replace(self, queries=tuple(queries), basis=basis)


def _total(expr: str) -> str:
    """The expression, with each rate of the chosen route replaced by its recorded total."""

    def recorded(found: re.Match[str]) -> str:
        metric, selector = found["metric"], found["selector"]
        if metric not in TOTALS:
            metric = metric.replace("_count", "_bucket")
            selector = ", ".join(filter(None, (selector, 'le="+Inf"')))
        total = f"{TOTALS[metric]}{{{selector}}}".replace("{}", "")
        return total if found["function"] == "rate" else f"60 * {total}"

    def percentile(found: re.Match[str]) -> str:
        name = PERCENTILES[found["metric"], found["selector"]]
        return f"max(stack:{name}:p{float(found['q']) * 100:g}_rate1m)"

    expr = QUANTILE_OF_ROUTE.sub(percentile, expr)
    for ratio, (weight, total) in RATIOS.items():
        expr = expr.replace(overall(ratio, weight), f"max({total}) or vector(NaN)")
    expr = RATE_OF_ROUTE.sub(recorded, expr)
    return expr.replace(f"{{{ROUTE}}}", "").replace(f"{ROUTE}, ", "")


def threshold(name: str, selector: str = "") -> str:
    """PromQL for a threshold of prometheus/rules/thresholds.yml: the general one, as one series.

    Args:
        name: without the prefix `threshold:`.
        selector: label matchers that pick one of several, such as by window or objective.
    """
    if name in BY_ROUTE:
        selector = 'route=""'
    return f"max(threshold:{name}{{{selector}}})" if selector else f"max(threshold:{name})"


def limit(expr: str, legend: str = "alert above", *, beside: str = "") -> Query:
    """The limit of an alert, read from the rule that the alert itself reads.

    Args:
        expr: PromQL of the limit.
        legend: its name.
        beside: PromQL; if it has no result, the limit has none either, so that the panel is empty
            and says why.
    """
    return Query(f"{expr} and on () ({beside})" if beside else expr, legend, threshold=True)


def general(limit: Query) -> Query:
    """The limit with the general threshold in place of each route's own."""
    expr = re.sub(r"route_threshold:(\w+)", lambda found: threshold(found[1]), limit.expr)
    return replace(limit, expr=expr)


def rate(metric: str, selector: str = "") -> str:
    """PromQL for a counter's total rate per second."""
    return f"sum(rate({metric}{{{selector}}}[{RATE}]))"


def quantile(q: float, metric: str, selector: str) -> str:
    """PromQL for one percentile; `>= 0` drops the NaN of a histogram without observations."""
    buckets = f"sum by (le) (rate({metric}_bucket{{{selector}}}[{RATE}]))"
    return f"histogram_quantile({q}, {buckets}) >= 0"


def quantiles(metric: str, selector: str) -> tuple[Query, ...]:
    """The median, 95th and 99th percentile of a histogram."""
    levels = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    return tuple(Query(quantile(q, metric, selector), name) for name, q in levels)


def buckets(metric: str, selector: str) -> str:
    """PromQL for a histogram's buckets over time; no result without observations."""
    counts = f"sum by (le) (increase({metric}_bucket{{{selector}}}[{RATE}]))"
    return f"{counts} and on () ({observed(metric, selector)})"


def observed(metric: str, selector: str) -> str:
    """PromQL that has a result only where a histogram had observations."""
    return f"{rate(f'{metric}_count', selector)} > 0"


def mean(metric: str, selector: str) -> str:
    """PromQL for the mean of a histogram; no result without observations."""
    return f"{rate(f'{metric}_sum', selector)} / ({observed(metric, selector)})"


def overall(ratio: str, weight: str) -> str:
    """PromQL for a recorded ratio over all chosen routes.

    It is NaN without traffic: if it had no result, Grafana would keep showing the last value.
    """
    ratio, weight = f"{ratio}{{{ROUTE}}}", f"{weight}{{{ROUTE}}}"
    return f"sum({ratio} * {weight}) / (sum({weight} and {ratio}) > 0) or vector(NaN)"


def highest(recorded: str) -> str:
    """PromQL for the highest value of the chosen routes; NaN without traffic, as in `overall`."""
    return f"max({recorded}{{{ROUTE}}} >= 0) or vector(NaN)"


def counted(expr: str, text: str) -> Query:
    """The number of observations behind a ratio or a percentile, as words in the label `text`.

    Args:
        expr: PromQL for the rate over 5 minutes, with no label but `route`.
        text: the words, as a replacement for `label_replace`; `$1` is the number.
    """
    number = f'count_values by (route) ("number", round(300 * {expr}))'
    return Query(f'label_replace({number}, "text", "{text}", "number", "(.+)")', "text")
