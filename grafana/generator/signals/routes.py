"""The table of routes: one row for each route, on the overview and in `./stack top`.

Every expression is a function of the window, a PromQL duration. `./stack top` uses the window that
its user chooses. The dashboard uses 5 minutes, as the alerts do, and so it can read what rules
record.
"""

from collections.abc import Callable
from dataclasses import dataclass

from generator.signals import HIT, Query, limit
from generator.signals.traffic import DURATION, REQUESTS
from generator.signals.upstream import FLASK

WINDOW = "5m"  # of the dashboard's table

FAILED = 'route!="none", status=~"5.."'
FAILED_IN_NGINX = 'route="none", status=~"5..", status!~"501|505"'
INCOMPLETE = "nginx_route_incomplete_responses_total"
CUT_OFF = 'cause!="client"'
LOOKUP = 'cache!~"NONE|overflow"'
# Requests that waited for Flask. A route without a cache (NONE) has no misses by definition, but
# its latency belongs in this column too: its row would otherwise show no latency.
WAITED = 'cache=~"MISS|EXPIRED|BYPASS|REVALIDATED|NONE"'


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        key: its name in the JSON of `./stack top`.
        title: its heading.
        unit: a unit id of Grafana's.
        expr: makes PromQL by route from the window.
        limit: the limit that colours a value, by route; None if no alert reads this column.
        low_is_bad: whether values below the limit are bad.
        recorded: the rule that records the column for WINDOW, if there is one.
    """

    key: str
    title: str
    unit: str
    expr: Callable[[str], str]
    limit: Query | None = None
    low_is_bad: bool = False
    recorded: str | None = None

    @property
    def on_dashboard(self) -> str:
        """PromQL for the dashboard: NaN where a route has no value.

        Without the NaN, the table would have no such column if no route had a value.
        """
        own = f"max by (route) ({self.recorded})" if self.recorded else self.expr(WINDOW)
        return f"{own} or NaN * max by (route) (route:nginx_requests:rate5m)"


def counted(metric: str, selector: str, window: str) -> str:
    """PromQL for a counter's rate by route.

    It includes what a new series had counted before its first scrape, for the reason given in
    prometheus/rules/nginx.yml. The step is the scrape interval; over hours, a step of 1 minute
    gives the same figures at a twelfth of the cost.
    """
    step = "1m" if window.endswith("h") else "5s"
    series = f"{metric}{{{selector}}}"
    filled = f"1 * {series} or 0 * {series} @ end() and on (job, instance) up == 1"
    return f"sum by (route) (rate(({filled})[{window}:{step}]))"


def requests(window: str) -> str:
    """PromQL for requests per second by route."""
    return counted(REQUESTS, "", window)


def failed(window: str) -> str:
    """PromQL for requests per second that failed, by route; 0 if none did.

    As in prometheus/rules/nginx.yml, these are 5xx responses, except requests that nginx itself
    refused, and incomplete responses, except those that the client broke off.
    """
    answered = (
        f"{counted(REQUESTS, FAILED, window)} or {counted(REQUESTS, FAILED_IN_NGINX, window)}"
    )
    # The label keeps `or` from dropping routes that have both.
    incomplete = f'label_replace({counted(INCOMPLETE, CUT_OFF, window)}, "cause", "any", "", "")'
    return f"(sum by (route) ({answered} or {incomplete}) or 0 * {requests(window)})"


def lookups(window: str) -> str:
    """PromQL for cacheable requests per second, by route."""
    return counted(REQUESTS, LOOKUP, window)


def hits(window: str) -> str:
    """PromQL for requests per second answered from the cache, by route; 0 if it has none."""
    return f"({counted(REQUESTS, HIT, window)} or 0 * {lookups(window)})"


def error_ratio(window: str) -> str:
    """PromQL for the share of requests that failed, by route."""
    # A 5xx response that is incomplete, too, counts twice.
    return f"clamp_max({failed(window)} / ({requests(window)} > 0), 1)"


def hit_ratio(window: str) -> str:
    """PromQL for the share of cacheable requests answered from the cache, by route."""
    return f"{hits(window)} / ({lookups(window)} > 0)"


def p95(selector: str, window: str) -> str:
    """PromQL for the 95th percentile of the time clients waited, by route."""
    rates = f"sum by (route, le) (rate({DURATION}_bucket{{{selector}}}[{window}]))"
    return f"histogram_quantile(0.95, {rates}) >= 0"


def flask_seconds(window: str) -> str:
    """PromQL for the seconds of Flask's time that a route takes each second."""
    return counted(f"{FLASK}_sum", "", window)


P95_LIMIT = limit("route_threshold:request_p95_seconds")

COLUMNS = (
    Column(
        "requests_per_second",
        "Requests/s",
        "reqps",
        requests,
        recorded="route:nginx_requests:rate5m",
    ),
    Column(
        "error_ratio",
        "Errors",
        "percentunit",
        error_ratio,
        limit("route_threshold:error_ratio"),
        recorded="route:nginx_errors:ratio_rate5m",
    ),
    Column(
        "cache_hit_ratio",
        "Hit ratio",
        "percentunit",
        hit_ratio,
        limit("1 - route_threshold:cache_miss_ratio"),
        low_is_bad=True,
        recorded="route:nginx_cache_hit:ratio_rate5m",
    ),
    Column("p95_hit_seconds", "p95 hits", "s", lambda window: p95(HIT, window), P95_LIMIT),
    Column("p95_miss_seconds", "p95 misses", "s", lambda window: p95(WAITED, window), P95_LIMIT),
    Column("flask_seconds_per_second", "Flask s/s", "none", flask_seconds),
)

# Recorded once a minute, so that a week has few samples; a sparkline needs no more.
REQUEST_TREND = "sum by (route) (route:nginx_requests:increase1m)"

# Values of `route` that stand for no route of the application; they come last in the table.
NO_ROUTE = "none|unmatched|overflow"

BY = "on (stack, route)"
GUARD = f"> bool {BY} route_threshold:traffic_guard_requests_per_second"
HEADER_P95 = "route:nginx_upstream_header_duration_seconds:p95_rate5m"
HEADER_RATE = (
    "sum by (stack, route)"
    ' (route_le:nginx_upstream_header_duration_seconds_bucket:rate5m{le="+Inf"})'
)
FAILS = (
    f'(route:nginx_errors:ratio_rate5m{{route!="none"}} > bool {BY} route_threshold:error_ratio)'
    f" * {BY} (route:nginx_requests:rate5m {GUARD})"
)
IS_SLOW = (
    f"({HEADER_P95} > bool {BY} route_threshold:upstream_p95_seconds)"
    f" * {BY} ({HEADER_RATE} {GUARD})"
)
MISSES = (
    f"(route:nginx_cache_miss:ratio_rate5m > bool {BY} route_threshold:cache_miss_ratio)"
    f" * {BY} (route:nginx_cache_lookups:rate5m {GUARD})"
)

# The conditions of ErrorRatioHigh (4), UpstreamSlow (2) and CacheMissRatioHigh (1), added up by
# route. 0 means that the route has traffic and is fine.
STATE = (
    f"sum by (route) (4 * {FAILS}"
    f" + {BY} (2 * {IS_SLOW} or {BY} 0 * {FAILS})"
    f" + {BY} ({MISSES} or {BY} 0 * {FAILS}))"
)
STATES = {
    0: "ok",
    1: "misses",
    2: "slow",
    3: "slow, misses",
    4: "errors",
    5: "errors, misses",
    6: "errors, slow",
    7: "errors, slow, misses",
}

# Routes in a worse state come first, then routes that keep more threads busy.
ORDER = (
    f'0 * sum by (route) (route:nginx_requests:rate5m{{route=~"{NO_ROUTE}"}}) - 1'
    f" or 1000 * {STATE} + on (route) ({flask_seconds(WINDOW)} or 0 * {STATE})"
)
