"""Flask, as nginx sees it."""

from generator import colours
from generator.signals import (
    INSTANCE,
    RATE,
    ROUTE,
    Query,
    Signal,
    buckets,
    counted,
    highest,
    limit,
    mean,
    observed,
    quantile,
    rate,
    threshold,
)

CONNECT = "nginx_route_upstream_connect_duration_seconds"
HEADER = "nginx_route_upstream_header_duration_seconds"
RESPONSE = "nginx_route_upstream_response_duration_seconds"
ATTEMPTS = "nginx_route_upstream_attempts_total"
FLASK = "flask_http_request_duration_seconds"

# An attempt has the status `none` if the client left before Flask answered. It says nothing
# about Flask, but it is the first attempt of a request that has a response time.
ATTEMPTED = rate(ATTEMPTS, ROUTE)
ANSWERED = rate(ATTEMPTS, f'{ROUTE}, status!="none"')

OF_FLASK = f"{ROUTE}, {INSTANCE}"

NO_UPSTREAM = "No request went to Flask in this time range"

UPSTREAM_P95 = Signal(
    title="p95 upstream",
    description=(
        "95 % of the requests that went to Flask got the first byte of an answer within this time, "
        "over 5 minutes. Red is above the alert's threshold: look at *Workers* on the overview for "
        "full or stuck workers, then at Flask itself."
    ),
    unit="s",
    queries=(
        Query(highest("route:nginx_upstream_header_duration_seconds:p95_rate5m"), "p95"),
        limit(threshold("upstream_p95_seconds")),
    ),
    empty="No upstream traffic",
    basis=counted(
        f'sum(route_le:nginx_upstream_header_duration_seconds_bucket:rate5m{{{ROUTE}, le="+Inf"}})',
        "of $1 requests to Flask",
    ),
)

PHASES = Signal(
    title="Upstream: connect, header, response",
    description=(
        "Time until nginx was connected to Flask, until it had the response's header, and until it "
        "had the whole response. Connecting normally takes almost no time; if it does not, the "
        "listen queue is full or the network is slow. Header time is the wait for a worker and "
        "Flask's work; response minus header is the time for the body."
    ),
    unit="s",
    queries=(
        *(
            Query(quantile(q, metric, ROUTE), f"{name} {level}")
            for name, metric in (("connect", CONNECT), ("header", HEADER), ("response", RESPONSE))
            for level, q in (("p50", 0.5), ("p95", 0.95))
        ),
        limit(
            threshold("upstream_p95_seconds"),
            "alert: header p95 above",
            beside=observed(HEADER, ROUTE),
        ),
    ),
    empty=NO_UPSTREAM,
    colours={
        "connect p50": "light-green",
        "connect p95": "green",
        "header p50": "light-blue",
        "header p95": "blue",
        "response p50": "light-purple",
        "response p95": "purple",
    },
)

HEADER_HEATMAP = Signal(
    title="Upstream header time",
    description=(
        "Number of requests by how long they waited for Flask's first byte. The fewer requests a "
        "cell has, the more it stands out from the background, so that a single slow one can be "
        "seen. One steady band is normal. A second band above it is a slow route or a stuck "
        "worker; a band that smears upwards means queueing."
    ),
    unit="s",
    queries=(Query(buckets(HEADER, ROUTE), "{{le}}"),),
    empty=NO_UPSTREAM,
)

FAILED = f'{ATTEMPTS}{{{ROUTE}, status=~"5.."}}'

FAILURES = Signal(
    title="Failed attempts and retries",
    description=(
        "Attempts per second by nginx to get an answer from Flask that ended in 5xx (502: no "
        "connection, 504: no answer in time, 500: an error in Flask), and retries: further "
        "attempts for the same request. Normal is none. Clients see a failure only if neither a "
        "retry nor a stale copy could cover it."
    ),
    unit="suffix:attempts/s",
    queries=(
        Query(f"sum by (status) (rate({FAILED}[{RATE}]))", "{{status}}"),
        Query(f"round({ATTEMPTED} - {rate(f'{RESPONSE}_count', ROUTE)}, 0.001) > 0", "retries"),
        limit(
            f"{threshold('upstream_failure_ratio')} * {ANSWERED}",
            beside=f"rate({FAILED}[{RATE}])",
        ),
    ),
    empty="No attempt failed in this time range",
    colours=colours.FAILURES | {"retries": colours.WAITED},
)

NGINX_AND_FLASK = Signal(
    title="Seen by nginx and by Flask",
    description=(
        "Mean time per request: for nginx, from connecting to the last byte; for Flask, the time "
        "inside the application. The gap between them is queueing for a worker and the network; "
        "normally it is a millisecond or two. A wide gap with a low Flask time calls for more "
        "workers, not for faster code."
    ),
    unit="s",
    queries=(
        Query(mean(RESPONSE, ROUTE), "seen by nginx"),
        Query(mean(FLASK, OF_FLASK), "seen by Flask"),
    ),
    empty=NO_UPSTREAM,
    colours={"seen by nginx": colours.WAITED, "seen by Flask": colours.NEUTRAL},
)

FLASK_RESPONSES = Signal(
    title="Responses by Flask",
    description=(
        "Responses that Flask itself counted, by status, with the cache's background refreshes. A "
        "5xx here is an exception in the application: its log has the traceback, with the request "
        "id."
    ),
    unit="reqps",
    queries=tuple(
        Query(rate("flask_http_request_total", f'{OF_FLASK}, status=~"{status[0]}.."'), status)
        for status in colours.STATUS
    ),
    empty=NO_UPSTREAM,
    colours=colours.STATUS,
)
