"""One endpoint: the same story as the stack overview, for the endpoint chosen above."""

from typing import Any

from boards.dashboard import dashboard, line
from boards.panels import heatmap, tile, timeseries
from boards.signals import cache, traffic, upstream
from boards.variables import INSTANCE, ONE_ENDPOINT


def endpoint() -> dict[str, Any]:
    """The dashboard with the uid `endpoint`."""
    return dashboard(
        "endpoint",
        "Endpoint",
        "Traffic, cache and upstream of one endpoint, which is a URL rule of Flask's.",
        variables=[ONE_ENDPOINT, INSTANCE],
        rows={
            "": [
                line(
                    4,
                    tile(traffic.REQUEST_RATE),
                    tile(traffic.ERROR_RATIO),
                    tile(cache.HIT_RATIO, low_is_bad=True),
                    tile(traffic.P95),
                    tile(upstream.UPSTREAM_P95),
                    tile(cache.OFFLOAD_NOW),
                ),
            ],
            "Traffic": [
                line(
                    8,
                    timeseries(traffic.BY_STATUS, kind="stack"),
                    timeseries(traffic.LATENCY, scale="log"),
                    heatmap(traffic.LATENCY_HEATMAP),
                ),
            ],
            "Cache": [
                line(
                    8,
                    timeseries(cache.HIT_RATIO_BY_ENDPOINT, most=1),
                    timeseries(cache.BY_CACHE_STATUS, kind="stack"),
                    timeseries(cache.LATENCY_BY_RESULT, scale="log"),
                ),
                line(
                    7,
                    timeseries(cache.OFFLOAD, most=1),
                    timeseries(cache.BYTES_BY_ORIGIN, kind="stack"),
                    timeseries(traffic.BY_METHOD, kind="stack"),
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
                    timeseries(upstream.FLASK_RESPONSES, kind="stack"),
                ),
            ],
        },
    )
