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

# For what only has to be told apart: hues that none of the meanings above has.
HUES = ("#5794F2", "#B877D9", "#3CC9D6", "#F277C6", "#8A7CF5", "#A3C4FF", "#2F6FB3", "#DDB3FF")


def _by_initial(path: str = "") -> dict[str, str]:
    """Hues by the first letter of a name, as regular expressions of Grafana's.

    So a name keeps its colour on every panel, and no list of names has to be kept.

    Args:
        path: what comes before the letter.
    """
    letters = ("a-b", "c-d", "e-h", "i-l", "m-o", "p-r", "s-t", "u-z")
    return {f"/^{path}[{group}]/i": hue for group, hue in zip(letters, HUES, strict=True)}


def _by_digit(pattern: str) -> dict[str, str]:
    """Hues by a digit of a name; `{}` in the regular expression is where it stands."""
    return {f"/{pattern.format(digit)}/": HUES[digit % len(HUES)] for digit in range(10)}


# The last fixed part of a URL rule decides: `users` of /api/users/<int:id>.
ROUTES = {
    r"/^\/$/": HUES[0],
    **{
        f"{rule.removesuffix('/i')}[^\\/<]*(\\/<[^\\/]*)*\\/?$/i": hue
        for rule, hue in _by_initial(r"(.*\/)").items()
    },
    "/^(none|unmatched)$/": IDLE,
}
NAMES = _by_initial()
WORKERS = _by_digit(r"^{}\b")
INSTANCES = _by_digit(r"{}:\d+$")
JOBS = {
    "nginx-proxy": HUES[0],
    "nginx-exporter": HUES[5],
    "nginx-access-exporter": HUES[2],
    "flask-app": HUES[1],
    "prometheus": HUES[3],
    "alertmanager": HUES[6],
    "grafana": HUES[7],
}
METHODS = {"GET": "blue", "HEAD": "light-blue", "POST": "purple", "PUT": HUES[2], "OTHER": IDLE}
