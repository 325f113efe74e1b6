"""One route: the same story as the stack overview, for the route chosen above."""

from typing import Any

from generator.dashboard import dashboard, line
from generator.panels import heatmap, stat, timeseries
from generator.signals import cache, traffic, upstream
from generator.variables import INSTANCE, ONE_ROUTE


def route() -> dict[str, Any]:
    """The dashboard with the uid `route`."""
    return dashboard(
        "route",
        "Route",
        "Traffic, cache and upstream of one route, that is, of one of Flask's URL rules.",
        variables=[ONE_ROUTE, INSTANCE],
        rows={
            "": [
                line(
                    4,
                    stat(traffic.REQUEST_RATE),
                    stat(traffic.ERROR_RATIO.for_one_route()),
                    stat(cache.HIT_RATIO.for_one_route(), low_is_bad=True),
                    stat(traffic.P95.for_one_route()),
                    stat(upstream.UPSTREAM_P95.for_one_route()),
                    stat(cache.OFFLOAD),
                ),
            ],
            "Traffic": [
                line(
                    8,
                    timeseries(traffic.BY_STATUS, kind="stack"),
                    timeseries(traffic.LATENCY.for_one_route(), scale="log"),
                    heatmap(traffic.LATENCY_HEATMAP),
                ),
            ],
            "Cache": [
                line(
                    8,
                    timeseries(cache.HIT_RATIO.for_one_route(), most=1),
                    timeseries(cache.BY_CACHE_STATUS, kind="stack"),
                    timeseries(cache.LATENCY_BY_RESULT, scale="log"),
                ),
                line(
                    7,
                    timeseries(cache.OFFLOAD, most=1),
                    timeseries(cache.SAVED),
                    timeseries(cache.BYTES_BY_ORIGIN, kind="stack"),
                    timeseries(traffic.BY_METHOD, kind="stack"),
                ),
            ],
            "Upstream": [
                line(
                    8,
                    timeseries(upstream.PHASES.for_one_route(), scale="log"),
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
