"""One colour for one meaning, on every panel; names as Grafana's palette has them, so both themes fit."""

GOOD = "green"
WAITED = "orange"
WARNING = "yellow"
BAD = "red"
NEUTRAL = "blue"
IDLE = "#808080"  # Grafana's palette has no grey; this one is readable on dark and on light

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

PERCENTILES = {"p50": "light-blue", "p95": "blue", "p99": "purple"}

EXITS = {"exit": IDLE, "signal": WAITED, "timeout": BAD}

CONNECTIONS = {"reading": "light-blue", "writing": "blue", "waiting": IDLE}

THRESHOLD = BAD
