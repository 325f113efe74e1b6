"""Requests and responses, as clients see them."""

from generator import colours
from generator.signals import (
    NO_REQUESTS,
    RATE,
    ROUTE,
    Query,
    Signal,
    buckets,
    counted,
    highest,
    limit,
    observed,
    overall,
    quantiles,
    rate,
    threshold,
)

REQUESTS = "nginx_route_requests_total"
DURATION = "nginx_route_request_duration_seconds"

REQUEST_RATE = Signal(
    title="Request rate",
    description=(
        "Requests answered per second, without health checks. Normal depends on the time of day; 0 "
        "means that the stack is idle. A sudden drop means that clients no longer get through: "
        "look at *nginx* and at the targets. “No data” means that the exporter itself is down."
    ),
    unit="reqps",
    # No series exist before the first request: an exporter that is up and has none counts as zero.
    queries=(
        Query(
            f'{rate(REQUESTS, ROUTE)} or 0 * sum(up{{job="nginx-access-exporter"}} == 1)',
            "requests",
        ),
    ),
)

ERROR_RATIO = Signal(
    title="Error ratio",
    description=(
        "Share of requests that failed, over 5 minutes: answered with 5xx, or with an incomplete "
        "response that the client did not break off. The alert reads the same number. Normal is 0; "
        "red is above the alert's threshold. *Traffic* shows when it began, *Upstream* whether "
        "Flask failed or could not be reached."
    ),
    unit="percentunit",
    queries=(
        Query(
            overall("route:nginx_errors:ratio_rate5m", "route:nginx_requests:rate5m"),
            "errors",
        ),
        limit(threshold("error_ratio")),
    ),
    empty="No traffic",
    basis=counted(f"sum(route:nginx_requests:rate5m{{{ROUTE}}})", "of $1 requests"),
)

RECORDED_P95 = "route:nginx_request_duration_seconds:p95_rate5m"

P95 = Signal(
    title="p95 latency",
    description=(
        "95 % of the route's requests were answered within this time, over 5 minutes. nginx "
        "measures it, so it includes the client's network and the wait for a worker. Red is above "
        "the route's limit in prometheus/rules/thresholds.yml. *Upstream* shows which part is slow."
    ),
    unit="s",
    queries=(Query(highest(RECORDED_P95), "p95"), limit(threshold("request_p95_seconds"))),
    empty="No traffic",
    basis=counted(f"sum(route:nginx_requests:rate5m{{{ROUTE}}})", "of $1 requests"),
)

SLOWEST_NOW = f"topk(1, {RECORDED_P95} @ end())"
OF_SLOWEST = counted(
    f"(route:nginx_requests:rate5m and on (stack, route) {SLOWEST_NOW})", "$1 requests"
)

SLOWEST = Signal(
    title="Slowest route",
    description=(
        "The route with the highest 95th percentile of latency over 5 minutes, and the number of "
        "requests behind that figure. Red is above the limit that applies to this route. The table "
        "*Routes* compares the route with the others."
    ),
    unit="s",
    queries=(
        Query(f"{RECORDED_P95} and on (stack, route) {SLOWEST_NOW}", "{{route}}"),
        limit(f"max(route_threshold:request_p95_seconds and on (stack, route) {SLOWEST_NOW})"),
    ),
    empty="No traffic",
    basis=Query(f'label_join({OF_SLOWEST.expr}, "text", ", ", "route", "text")', "text"),
)

BY_ROUTE = Signal(
    title="Requests by route",
    description=(
        "Requests per second of the eight busiest routes of the whole time range, and of all "
        "others together. `unmatched` counts requests that match none of Flask's URL rules; a rise "
        "is usually a scanner or a broken link. `none` counts requests that got no answer from "
        "Flask. Click a line for that route's dashboard."
    ),
    unit="suffix:/s",  # short, so that the legend fits
    queries=(
        Query('sum by (route) (route:nginx_requests:rate1m{route=~"$busiest"})', "{{route}}"),
        Query(
            "sum(cache_status:nginx_requests:rate1m)"
            ' - (sum(route:nginx_requests:rate1m{route=~"$busiest"}) or vector(0)) > 0.0001',
            "other",
        ),
    ),
    empty=NO_REQUESTS,
    colours={"other": colours.IDLE},
)

BY_STATUS = Signal(
    title="Responses by status class",
    description=(
        "Responses per second, stacked, errors on top. Normal is green with some blue (redirects, "
        "304) and yellow (clients' mistakes). Red is the server's fault: compare with *Failed "
        "attempts and retries*."
    ),
    unit="reqps",
    queries=tuple(
        Query(rate(REQUESTS, f'{ROUTE}, status=~"{status[0]}.."'), status)
        for status in colours.STATUS
    ),
    empty=NO_REQUESTS,
    colours=colours.STATUS,
)

BY_METHOD = Signal(
    title="Requests by method",
    description=(
        "Requests per second by HTTP method; non-standard methods count as `OTHER`. Only GET and "
        "HEAD can be answered from the cache, so a shift to other methods puts load on Flask."
    ),
    unit="reqps",
    queries=(Query(f"sum by (method) (rate({REQUESTS}{{{ROUTE}}}[{RATE}]))", "{{method}}"),),
    empty=NO_REQUESTS,
)

LATENCY = Signal(
    title="Latency clients see",
    description=(
        "Time from the first byte of the request to the last byte of the response, at nginx. Half "
        "of the requests are slower than p50, and 1 % are slower than p99. If only p99 rises, look "
        "at *Upstream* and *Workers*; if all rise together, look at the cache. The line is the "
        "limit for a route's p95."
    ),
    unit="s",
    queries=(
        *quantiles(DURATION, ROUTE),
        limit(threshold("request_p95_seconds"), "p95 limit", beside=observed(DURATION, ROUTE)),
    ),
    empty=NO_REQUESTS,
    colours=colours.PERCENTILES,
)

LATENCY_HEATMAP = Signal(
    title="Latency distribution",
    description=(
        "Number of requests by how long they took. The fewer requests a cell has, the more it "
        "stands out from the background, so that a single slow one can be seen. Two bands are "
        "normal for a cached route: hits below, misses above. If a band climbs, the upstream is "
        "slowing down."
    ),
    unit="s",
    queries=(Query(buckets(DURATION, ROUTE), "{{le}}"),),
    empty=NO_REQUESTS,
)
