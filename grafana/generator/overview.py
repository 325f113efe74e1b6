"""Stack overview, the home page: is the stack fine, and if not, which route fails, and why?"""

from typing import Any

from generator.dashboard import dashboard, line
from generator.mappings import TARGET_STATES, WORKER_STATES
from generator.panels import alerts, heatmap, routes, stat, states, timeseries
from generator.signals import cache, monitoring, nginx, traffic, upstream, workers
from generator.variables import BUSIEST, INSTANCE


def overview() -> dict[str, Any]:
    """The dashboard with the uid `stack-overview`."""
    return dashboard(
        "stack-overview",
        "Stack overview",
        "nginx, gunicorn and Flask: is the stack fine, and if not, which route has the problem?",
        variables=[INSTANCE, *BUSIEST],
        rows={
            "": [
                line(
                    4,
                    stat(traffic.REQUEST_RATE.for_all_routes()),
                    stat(traffic.ERROR_RATIO.for_all_routes()),
                    stat(cache.HIT_RATIO.for_all_routes(), low_is_bad=True),
                    stat(traffic.SLOWEST, trend=False),
                    stat(workers.UTILISATION),
                    stat(monitoring.FIRING),
                    widths=(4, 4, 4, 5, 4, 3),  # the slowest route has a name
                ),
                line(
                    6,
                    alerts(monitoring.ALERTS),
                    timeseries(monitoring.BUDGET),
                    states(monitoring.TARGETS, TARGET_STATES),
                    widths=(12, 4, 8),
                ),
            ],
            "Routes": [
                line(
                    13,
                    routes(
                        "Routes",
                        "One row for each of Flask's URL rules, over the last 5 minutes. Routes in "
                        "a bad state come first, then the routes that take most of Flask's time. "
                        "State names the alert conditions that hold: errors, slow (time to Flask's "
                        "first byte), misses. A figure is red beyond the general threshold in "
                        "prometheus/rules/thresholds.yml; State uses the route's own threshold "
                        "where there is one. Flask s/s is how many threads the route keeps busy. "
                        "`unmatched` counts requests that match no URL rule, `none` requests that "
                        "got no answer from Flask. Click a row for the route's dashboard.",
                    ),
                ),
            ],
            "Traffic": [
                line(
                    8,
                    timeseries(traffic.BY_ROUTE),
                    timeseries(traffic.BY_STATUS.for_all_routes(), kind="stack"),
                    timeseries(traffic.LATENCY.for_all_routes(), scale="log"),
                    widths=(13, 6, 5),
                ),
            ],
            "Cache": [
                line(
                    9,
                    timeseries(cache.HIT_RATIO_BY_ROUTE, most=1),
                    timeseries(cache.BY_CACHE_STATUS.for_all_routes(), kind="stack"),
                    timeseries(cache.LATENCY_BY_RESULT.for_all_routes(), scale="log"),
                    widths=(13, 6, 5),
                ),
                line(
                    7,
                    timeseries(cache.OFFLOAD.for_all_routes(), most=1),
                    timeseries(cache.SAVED.for_all_routes()),
                    timeseries(cache.BYTES_BY_ORIGIN.for_all_routes(), kind="stack"),
                ),
                line(
                    7,
                    timeseries(cache.SIZE),
                    timeseries(cache.ENTRIES),
                    timeseries(cache.OLDEST),
                    timeseries(cache.EVICTIONS),
                ),
            ],
            "Upstream": [
                line(
                    8,
                    timeseries(upstream.PHASES.for_all_routes(), scale="log"),
                    heatmap(upstream.HEADER_HEATMAP.for_all_routes()),
                ),
                line(
                    7,
                    timeseries(upstream.FAILURES.for_all_routes()),
                    timeseries(upstream.NGINX_AND_FLASK.for_all_routes()),
                ),
            ],
            "Workers": [
                line(
                    8,
                    timeseries(workers.UTILISATION_BY_INSTANCE, most=1),
                    states(workers.BUSY_WORKERS, WORKER_STATES, texts=False),
                    widths=(8, 16),
                ),
                line(
                    7,
                    timeseries(workers.QUEUE, scale="log"),
                    timeseries(workers.BACKLOG),
                    timeseries(workers.SHED),
                    timeseries(workers.EXITS, kind="bars"),
                ),
                line(
                    7,
                    timeseries(workers.MEMORY),
                    timeseries(workers.CONTAINER_MEMORY, most=1),
                    timeseries(workers.THROTTLED),
                ),
            ],
            "nginx": [
                line(
                    7,
                    timeseries(nginx.CONNECTIONS, kind="stack"),
                    timeseries(nginx.DROPPED),
                ),
            ],
        },
    )
