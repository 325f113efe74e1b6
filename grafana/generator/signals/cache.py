"""Whether nginx's cache does its work."""

from generator import colours
from generator.signals import (
    NO_REQUESTS,
    ROUTE,
    Query,
    Signal,
    limit,
    overall,
    quantile,
    rate,
    threshold,
)
from generator.signals.traffic import DURATION, REQUESTS

HIT = 'cache=~"HIT|STALE|UPDATING"'
MISS = 'cache=~"MISS|EXPIRED|BYPASS"'
BYTES = "nginx_route_response_bytes_total"

HIT_RATIOS = f"route:nginx_cache_hit:ratio_rate5m{{{ROUTE}}} >= 0"

NO_LOOKUPS = "No cacheable requests in this time range"

HIT_RATIO = Signal(
    title="Cache hit ratio",
    description=(
        "Share of cacheable requests answered without waiting for Flask, over 5 minutes. Red is "
        "below what the alert on misses tolerates. *Cache* shows which route and whether "
        "misses, expiry or bypasses are behind it. “No cacheable traffic” is not 0 %."
    ),
    unit="percentunit",
    queries=(
        Query(
            overall("route:nginx_cache_hit:ratio_rate5m", "route:nginx_cache_lookups:rate5m"),
            "hits",
        ),
        limit(f"1 - {threshold('cache_miss_ratio')}", "alert below"),
    ),
    empty="No cacheable traffic",
)

HIT_RATIO_BY_ROUTE = Signal(
    title="Hit ratio by route",
    description=(
        "Share of cacheable requests answered without waiting for Flask (HIT, STALE, UPDATING), "
        "over 5 minutes. Normal is near 100 % while a route is busy; a rarely asked one "
        "misses whenever its entry has expired. Below the line for long: is something varying the "
        "URL, or setting cookies? A gap is no cacheable traffic."
    ),
    unit="percentunit",
    queries=(
        Query(HIT_RATIOS, "{{route}}"),
        limit(f"1 - {threshold('cache_miss_ratio')}", "alert below", beside=HIT_RATIOS),
    ),
    empty=NO_LOOKUPS,
)

BY_CACHE_STATUS = Signal(
    title="Requests by cache status",
    description=(
        "Cacheable requests per second, stacked. Green was answered from the cache (STALE and "
        "UPDATING: an old copy while a new one is fetched), orange waited for Flask, grey went "
        "around the cache. A burst of orange after a deploy or a purge is normal; one that stays "
        "is a miss storm."
    ),
    unit="reqps",
    queries=tuple(
        Query(rate(REQUESTS, f'{ROUTE}, cache="{status}"'), status) for status in colours.CACHE
    ),
    empty=NO_LOOKUPS,
    colours=colours.CACHE,
)

LATENCY_BY_RESULT = Signal(
    title="Latency of hits and of misses",
    description=(
        "What the cache saves a client. Hits take about a millisecond, whatever Flask does; "
        "misses take as long as *Upstream*. Slow hits mean that nginx itself is short of CPU or "
        "disk, or that the client's network is slow."
    ),
    unit="s",
    queries=(
        Query(quantile(0.5, DURATION, f"{ROUTE}, {HIT}"), "hit p50"),
        Query(quantile(0.95, DURATION, f"{ROUTE}, {HIT}"), "hit p95"),
        Query(quantile(0.5, DURATION, f"{ROUTE}, {MISS}"), "miss p50"),
        Query(quantile(0.95, DURATION, f"{ROUTE}, {MISS}"), "miss p95"),
    ),
    empty=NO_LOOKUPS,
    colours={
        "hit p50": "light-green",
        "hit p95": "green",
        "miss p50": "light-orange",
        "miss p95": "orange",
    },
)

OFFLOAD_NOW = Signal(
    title="Offload",
    description=(
        "Share of requests Flask never saw, over 5 minutes; background refreshes count as seen. "
        "The chart *Offload* shows its course. “No cacheable traffic” is not 0 %."
    ),
    unit="percentunit",
    queries=(
        Query(
            overall("route:nginx_cache_offload:ratio_rate5m", "route:nginx_requests:rate5m"),
            "offload",
        ),
    ),
    empty="No cacheable traffic",
)

OFFLOAD = Signal(
    title="Offload",
    description=(
        "Share of requests Flask never saw, over 5 minutes. Unlike the hit ratio it counts "
        "background refreshes, which clients do not wait for but Flask has to answer. Routes "
        "without a cache are left out. A drop here with a steady hit ratio means that refreshes "
        "eat what the cache saves."
    ),
    unit="percentunit",
    queries=(Query(f"route:nginx_cache_offload:ratio_rate5m{{{ROUTE}}} >= 0", "{{route}}"),),
    empty=NO_LOOKUPS,
)

BYTES_BY_ORIGIN = Signal(
    title="Bytes sent",
    description=(
        "Bytes sent to clients per second, by where they came from: nginx's cache or Flask. "
        "Compare with what the network can carry; a rise without a rise in requests is a response "
        "that grew."
    ),
    unit="Bps",
    queries=(
        Query(rate(BYTES, f'{ROUTE}, cache=~"HIT|STALE|UPDATING|REVALIDATED"'), "from the cache"),
        Query(rate(BYTES, f'{ROUTE}, cache=~"MISS|EXPIRED|BYPASS|NONE"'), "from Flask"),
    ),
    empty=NO_REQUESTS,
    colours={"from the cache": colours.GOOD, "from Flask": colours.WAITED},
)
