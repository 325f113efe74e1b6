"""Stack overview, the home page: is it fine? cache working? upstream slow? workers full?"""

from typing import Any

from generator.dashboard import dashboard, line
from generator.mappings import TARGET_STATES, WORKER_STATES
from generator.panels import alerts, heatmap, stat, states, timeseries
from generator.signals import cache, monitoring, nginx, traffic, upstream, workers
from generator.variables import INSTANCE, ROUTES


def overview() -> dict[str, Any]:
    """The dashboard with the uid `stack-overview`."""
    return dashboard(
        "stack-overview",
        "Stack overview",
        "nginx, gunicorn and Flask: the top says whether it is fine, the rows below where to look.",
        variables=[INSTANCE, ROUTES],
        rows={
            "": [
                line(
                    4,
                    stat(traffic.REQUEST_RATE),
                    stat(traffic.ERROR_RATIO),
                    stat(cache.HIT_RATIO, low_is_bad=True),
                    stat(traffic.P95),
                    stat(workers.UTILISATION),
                    stat(monitoring.FIRING),
                ),
                line(
                    6,
                    alerts(monitoring.ALERTS),
                    timeseries(monitoring.BUDGET),
                    states(monitoring.TARGETS, TARGET_STATES),
                    widths=(12, 5, 7),
                ),
            ],
            "Traffic": [
                line(
                    8,
                    timeseries(traffic.BY_ROUTE),
                    timeseries(traffic.BY_STATUS, kind="stack"),
                    timeseries(traffic.LATENCY, scale="log"),
                ),
            ],
            "Cache": [
                line(
                    8,
                    timeseries(cache.HIT_RATIO_BY_ROUTE, most=1),
                    timeseries(cache.BY_CACHE_STATUS, kind="stack"),
                    timeseries(cache.LATENCY_BY_RESULT, scale="log"),
                ),
                line(
                    7,
                    timeseries(cache.OFFLOAD, most=1),
                    timeseries(cache.BYTES_BY_ORIGIN, kind="stack"),
                ),
            ],
            "Upstream": [
                line(
                    8,
                    timeseries(upstream.PHASES, scale="log"),
                    heatmap(upstream.HEADER_HEATMAP),
                ),
                line(
                    7,
                    timeseries(upstream.FAILURES),
                    timeseries(upstream.NGINX_AND_FLASK),
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
                    timeseries(workers.BACKLOG, scale="symlog"),
                    timeseries(workers.MEMORY),
                    timeseries(workers.EXITS, kind="bars"),
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
