"""Value mappings: the text and colour of a value. Grafana uses the first mapping that matches."""

from typing import Any

from generator import colours
from generator.signals.routes import STATES
from generator.signals.workers import STUCK

Mapping = dict[str, Any]


def exactly(values: dict[str, tuple[str, str]]) -> Mapping:
    """Text and colour by value."""
    results = {
        value: {"text": text, "color": colour, "index": index}
        for index, (value, (text, colour)) in enumerate(values.items())
    }
    return {"type": "value", "options": results}


def between(low: float, high: float | None, colour: str, text: str | None = None) -> Mapping:
    """The colour of a range of values, and the text shown instead of the number, if any."""
    result = {"color": colour} if text is None else {"text": text, "color": colour}
    return {"type": "range", "options": {"from": low, "to": high, "result": result}}


def no_value(text: str, colour: str = colours.IDLE) -> Mapping:
    """The text and colour where there is no number."""
    result = {"text": text, "color": colour}
    return {"type": "special", "options": {"match": "null+nan", "result": result}}


# For in-flight requests per thread.
WORKER_STATES = [
    exactly({"0": ("idle", colours.IDLE)}),
    between(STUCK, None, colours.BAD, "stuck"),
    between(1, STUCK, colours.WAITED, "full"),
    between(0, 1, colours.NEUTRAL, "working"),
    no_value("no worker", "transparent"),
]

# For the share of a job's targets that are up.
TARGET_STATES = [
    exactly({"0": ("down", colours.BAD), "1": ("up", colours.GOOD)}),
    between(0, 1, colours.WARNING, "partly"),
]

ALERT_STATES = [
    exactly({"firing": ("firing", colours.BAD), "pending": ("pending", "dark-yellow")}),
]

# For a route: red while it fails, orange while it is slow or misses the cache.
ROUTE_STATES = [
    exactly(
        {
            str(value): (
                text,
                colours.BAD if "errors" in text else colours.WAITED if value else colours.GOOD,
            )
            for value, text in STATES.items()
        }
    )
]
