"""A panel's queries in Grafana's JSON."""

from typing import Any, Literal

from generator.scope import of_chosen_stack
from generator.signals import Query

Target = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def over_time(
    queries: tuple[Query, ...], fmt: Literal["time_series", "heatmap"] = "time_series"
) -> list[Target]:
    """The queries over the time range of the dashboard, as A, B and so on."""
    return [
        _target(chr(ord("A") + index), query, fmt) | {"range": True, "instant": False}
        for index, query in enumerate(queries)
    ]


def now(ref: str, query: Query) -> Target:
    """The query at the end of the time range, as a table."""
    return _target(ref, query, "table") | {"range": False, "instant": True}


def _target(ref: str, query: Query, fmt: str) -> Target:
    return {
        "refId": ref,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": of_chosen_stack(query.expr),
        "legendFormat": query.legend,
        "format": fmt,
    }
