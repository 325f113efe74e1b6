"""Whether nginx's cache does its work."""

from generator import colours
from generator.signals import (
    HIT,
    MISS,
    NO_REQUESTS,
    RATE,
    ROUTE,
    Query,
    Signal,
    counted,
    limit,
    overall,
    quantile,
    rate,
    threshold,
)
from generator.signals.traffic import DURATION, REQUESTS

BYTES = "nginx_route_response_bytes_total"

NO_LOOKUPS = "No cacheable requests in this time range"

HIT_RATIO = Signal(
    title="Hit ratio",
    description=(
        "Share of cacheable requests (lookups) that the cache answered without a wait for Flask, "
        "over 5 minutes. Red is below the threshold of the alert on misses. *Requests by cache "
        "status* shows whether misses, expired entries or bypasses lower it. “No cacheable "
        "traffic” does not mean 0 %."
    ),
    unit="percentunit",
    queries=(
        Query(
            overall("route:nginx_cache_hit:ratio_rate5m", "route:nginx_cache_lookups:rate5m"),
            "hits",
        ),
        limit(
            f"1 - {threshold('cache_miss_ratio')}",
            "alert below",
            beside=f"sum(route:nginx_cache_lookups:rate5m{{{ROUTE}}}) > 0",
        ),
    ),
    empty="No cacheable traffic",
    colours={"hits": colours.GOOD},
    basis=counted(f"sum(route:nginx_cache_lookups:rate5m{{{ROUTE}}})", "of $1 lookups"),
)

BUSIEST = 'route=~"$cached"'
HITS_OF_BUSIEST = (
    f"sum(route:nginx_cache_hit:ratio_rate5m{{{BUSIEST}}}"
    f" * route:nginx_cache_lookups:rate5m{{{BUSIEST}}})"
)
LOOKUPS_OF_BUSIEST = f"sum(route:nginx_cache_lookups:rate5m{{{BUSIEST}}})"

HIT_RATIO_BY_ROUTE = Signal(
    title="Hit ratio by route",
    description=(
        "Share of cacheable requests that the cache answered without a wait for Flask (HIT, STALE, "
        "UPDATING), over 5 minutes: the eight routes with the most cacheable requests of the whole "
        "time range, and all others together. Normal is near 100 % while a route is busy. If a "
        "route stays below the line, look for URLs or cookies that vary. A gap is a time without "
        "cacheable requests."
    ),
    unit="percentunit",
    queries=(
        Query(
            f"sum by (route) (route:nginx_cache_hit:ratio_rate5m{{{BUSIEST}}})",
            "{{route}}",
        ),
        Query(
            "(sum(stack:nginx_cache_hit:ratio_rate5m * stack:nginx_cache_lookups:rate5m)"
            f" - {HITS_OF_BUSIEST})"
            f" / (sum(stack:nginx_cache_lookups:rate5m) - {LOOKUPS_OF_BUSIEST} > 0.0001)",
            "other",
        ),
        limit(
            f"1 - {threshold('cache_miss_ratio')}",
            "alert below",
            beside="stack:nginx_cache_hit:ratio_rate5m",
        ),
    ),
    empty=NO_LOOKUPS,
    colours={"other": colours.IDLE},
)

BY_CACHE_STATUS = Signal(
    title="Requests by cache status",
    description=(
        "Cacheable requests per second, stacked. Green requests were answered from the cache "
        "(STALE and UPDATING: with an old copy while a new one is fetched), orange ones waited for "
        "Flask, grey ones bypassed the cache. A burst of orange after a deploy or a purge is "
        "normal; one that lasts is a miss storm."
    ),
    unit="reqps",
    queries=tuple(
        Query(rate(REQUESTS, f'{ROUTE}, cache="{status}"'), status) for status in colours.CACHE
    ),
    empty=NO_LOOKUPS,
    colours=colours.CACHE,
)

LATENCY_BY_RESULT = Signal(
    title="Hit and miss latency",
    description=(
        "How much time the cache saves clients. Hits take about a millisecond, whatever Flask "
        "does; misses take as long as Flask does (see *Upstream*). Slow hits mean that nginx "
        "itself is short of CPU or disk, or that the client's network is slow."
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

OFFLOAD = Signal(
    title="Offload",
    description=(
        "Share of the requests for cached routes that Flask never saw, over 5 minutes. It counts "
        "background refreshes: clients do not wait for them, but Flask has to answer them. If it "
        "drops while the hit ratio is steady, background refreshes have become frequent. “No "
        "cacheable traffic” does not mean 0 %."
    ),
    unit="percentunit",
    queries=(
        Query(
            overall("route:nginx_cache_offload:ratio_rate5m", "route:nginx_requests:rate5m"),
            "offload",
        ),
    ),
    empty="No cacheable traffic",
    colours={"offload": colours.NEUTRAL},
)

BYTES_BY_ORIGIN = Signal(
    title="Bytes sent",
    description=(
        "Bytes sent to clients per second, by where they came from: nginx's cache or Flask. "
        "Compare it with the network's capacity. A rise without more requests means that responses "
        "have grown."
    ),
    unit="Bps",
    queries=(
        Query(rate(BYTES, f'{ROUTE}, cache=~"HIT|STALE|UPDATING|REVALIDATED"'), "from the cache"),
        Query(rate(BYTES, f'{ROUTE}, cache=~"MISS|EXPIRED|BYPASS|NONE"'), "from Flask"),
    ),
    empty=NO_REQUESTS,
    colours={"from the cache": colours.GOOD, "from Flask": colours.WAITED},
)

SAVED = Signal(
    title="Flask time saved",
    description=(
        "Seconds of Flask's time that hits save each second: the rate of hits times the mean time "
        "that Flask takes for the route, over the last hour. 2 means that two more threads would "
        "be busy all the time without the cache. 0 is normal only without cacheable traffic."
    ),
    unit="suffix:s/s",
    queries=(Query(f"sum(route:nginx_cache_saved_seconds:rate5m{{{ROUTE}}})", "saved"),),
    empty="No hit in this time range",
    colours={"saved": colours.GOOD},
)

NO_CACHE = "The access exporter cannot see the cache"

SIZE = Signal(
    title="Cache size",
    description=(
        "Size of the cached responses on disk, and the limit (max_size in nginx's configuration). "
        "Above the limit nginx removes the entries that were least recently used, although they "
        "are still valid: see *Cache evictions*."
    ),
    unit="bytes",
    queries=(
        Query("sum by (zone) (nginx_cache_size_bytes)", "{{zone}}"),
        limit("max(nginx_cache_max_size_bytes)", "max_size"),
    ),
    empty=NO_CACHE,
)

ENTRIES = Signal(
    title="Cache entries",
    description=(
        "Cached responses, and how many keys the cache's memory zone holds (about 8,000 per "
        "megabyte). When the zone is full, nginx removes the entries that were least recently used."
    ),
    unit="short",
    queries=(
        Query("sum by (zone) (nginx_cache_entries)", "{{zone}}"),
        limit("max(nginx_cache_keys_capacity)", "keys that fit"),
    ),
    empty=NO_CACHE,
)

EVICTIONS = Signal(
    title="Cache evictions",
    description=(
        "Entries per minute that vanished before nginx's `inactive` time was over. Normal is 0. "
        "It is a lower bound, since only nginx knows when an entry was last used. Evictions while "
        "*Cache size* or *Cache entries* is near its limit mean that the cache is too small. A "
        "purge also counts."
    ),
    unit="suffix:entries/min",
    queries=(Query(f"60 * sum by (zone) (rate(nginx_cache_evictions_total[{RATE}]))", "{{zone}}"),),
    empty=NO_CACHE,
)

OLDEST = Signal(
    title="Oldest cache entry",
    description=(
        "Age of the oldest cached response. It grows to the time for which nginx keeps unused "
        "entries. A short age with many evictions means that entries leave before they are used "
        "again."
    ),
    unit="s",
    queries=(Query("max by (zone) (nginx_cache_oldest_entry_age_seconds)", "{{zone}}"),),
    empty="The cache is empty",
)
