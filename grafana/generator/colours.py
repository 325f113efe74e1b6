"""One colour for one meaning on every panel, from Grafana's palette, which fits both themes."""

GOOD = "green"
WAITED = "orange"
WARNING = "yellow"
BAD = "red"
NEUTRAL = "blue"
IDLE = "#808080"  # the palette has no grey

CACHE = {
    "HIT": "green",
    "STALE": "semi-dark-green",
    "UPDATING": "light-green",
    "REVALIDATED": "super-light-green",
    "MISS": "orange",
    "EXPIRED": "light-orange",
    "BYPASS": IDLE,
}

STATUS = {"2xx": GOOD, "3xx": NEUTRAL, "4xx": WARNING, "5xx": BAD}

FAILURES = {"500": "dark-red", "502": "red", "503": "light-red", "504": "super-light-red"}

PERCENTILES = {"p50": "light-blue", "p95": "blue", "p99": "purple"}

EXITS = {"exit": IDLE, "signal": WAITED, "timeout": BAD}

CONNECTIONS = {"reading": "light-blue", "writing": "blue", "waiting": IDLE}
