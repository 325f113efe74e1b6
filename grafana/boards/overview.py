"""Stack overview, the home page: is it fine, is the cache working, is the upstream slow, are the workers full?"""

from typing import Any

from boards.dashboard import ENDPOINTS, INSTANCE, dashboard
from boards.panels import TARGET_STATES, WORKER_STATES, alerts, heatmap, states, tile, timeseries
from boards.signals import cache, monitoring, nginx, traffic, upstream, workers


def overview() -> dict[str, Any]:
    """The dashboard with the uid `stack-overview`."""
    return dashboard(
        "stack-overview",
        "Stack overview",
        "nginx, gunicorn and Flask at a glance: the top row says whether it is fine, each row below where to look.",
        variables=[INSTANCE, ENDPOINTS],
        rows={
            "": [
                (
                    4,
                    [
                        (4, tile(traffic.REQUEST_RATE)),
                        (4, tile(traffic.ERROR_RATIO)),
                        (4, tile(cache.HIT_RATIO, low_is_bad=True)),
                        (4, tile(traffic.P95)),
                        (4, tile(workers.UTILISATION)),
                        (4, tile(monitoring.FIRING)),
                    ],
                ),
                (
                    6,
                    [
                        (14, alerts(monitoring.ALERTS)),
                        (10, states(monitoring.TARGETS, TARGET_STATES)),
                    ],
                ),
            ],
            "Traffic": [
                (
                    8,
                    [
                        (8, timeseries(traffic.BY_ENDPOINT)),
                        (8, timeseries(traffic.BY_STATUS, stacked=True)),
                        (8, timeseries(traffic.LATENCY)),
                    ],
                ),
            ],
            "Cache": [
                (
                    8,
                    [
                        (8, timeseries(cache.HIT_RATIO_BY_ENDPOINT, most=1)),
                        (8, timeseries(cache.BY_CACHE_STATUS, stacked=True)),
                        (8, timeseries(cache.LATENCY_BY_RESULT)),
                    ],
                ),
                (
                    7,
                    [
                        (12, timeseries(cache.OFFLOAD, most=1)),
                        (12, timeseries(cache.BYTES_BY_ORIGIN, stacked=True)),
                    ],
                ),
            ],
            "Upstream": [
                (8, [(12, timeseries(upstream.PHASES)), (12, heatmap(upstream.HEADER_HEATMAP))]),
                (
                    7,
                    [
                        (12, timeseries(upstream.FAILURES)),
                        (12, timeseries(upstream.NGINX_AND_FLASK)),
                    ],
                ),
            ],
            "Workers": [
                (
                    8,
                    [
                        (8, timeseries(workers.UTILISATION_BY_INSTANCE, most=1)),
                        (16, states(workers.BUSY_WORKERS, WORKER_STATES)),
                    ],
                ),
                (
                    7,
                    [
                        (6, timeseries(workers.QUEUE)),
                        (6, timeseries(workers.BACKLOG, logarithmic=True)),
                        (6, timeseries(workers.MEMORY)),
                        (6, timeseries(workers.EXITS, bars=True)),
                    ],
                ),
            ],
            "nginx": [
                (
                    7,
                    [
                        (12, timeseries(nginx.CONNECTIONS, stacked=True)),
                        (12, timeseries(nginx.DROPPED)),
                    ],
                ),
            ],
        },
    )
