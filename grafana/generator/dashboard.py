"""What all dashboards have in common: the grid, and links to one another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from generator.annotations import ANNOTATIONS, annotation
from generator.panels import Panel
from generator.variables import ADDRESSES, DATA_SOURCE, STACK, Variable

COLUMNS = 24


@dataclass(frozen=True)
class Line:
    """Panels side by side: their height in grid units, and their widths in columns."""

    height: int
    panels: Sequence[Panel]
    widths: Sequence[int]


def line(height: int, *panels: Panel, widths: Sequence[int] = ()) -> Line:
    """Panels side by side, equally wide unless `widths` is given.

    Args:
        height: in grid units, 38 px each.
        panels: from left to right.
        widths: in columns of the grid, which has 24.
    """
    return Line(height, panels, widths or [COLUMNS // len(panels)] * len(panels))


def dashboard(
    uid: str,
    title: str,
    description: str,
    *,
    variables: Sequence[Variable],
    rows: dict[str, list[Line]],
) -> dict[str, Any]:
    """A whole dashboard, in the order it is read.

    Args:
        uid: stable id, part of its address.
        title: its name in menus.
        description: the question it answers.
        variables: the dashboard's variables, besides the data source and the stack.
        rows: lines of panels by the title of their row; an empty title makes no header.
    """
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["stack"],
        "schemaVersion": 41,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-15m", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "templating": {"list": [DATA_SOURCE, STACK, *variables, *ADDRESSES]},
        "annotations": {"list": [annotation(each) for each in ANNOTATIONS]},
        "links": [
            _to_dashboards(),
            _to("Prometheus", "${prometheus}/alerts", "Alerts, rules and targets"),
            _to("Alertmanager", "${alertmanager}/#/alerts", "Notified alerts and silences"),
        ],
        "panels": _grid(rows),
    }


def _grid(rows: dict[str, list[Line]]) -> list[Panel]:
    """Panels with ids and places, from left to right and from top to bottom."""
    places: list[tuple[Panel, dict[str, int]]] = []
    top = 0
    for title, lines in rows.items():
        if title:
            header = {"type": "row", "title": title, "collapsed": False, "panels": []}
            places.append((header, {"x": 0, "y": top, "w": COLUMNS, "h": 1}))
            top += 1
        for each in lines:
            left = 0
            for panel, width in zip(each.panels, each.widths, strict=True):
                places.append((panel, {"x": left, "y": top, "w": width, "h": each.height}))
                left += width
            top += each.height
    return [
        {"id": number, "gridPos": place} | panel
        for number, (panel, place) in enumerate(places, start=1)
    ]


def _to_dashboards() -> dict[str, Any]:
    return {
        "type": "dashboards",
        "title": "Dashboards",
        "tags": ["stack"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    }


def _to(title: str, url: str, tooltip: str) -> dict[str, Any]:
    return {
        "type": "link",
        "title": title,
        "url": url,
        "tooltip": tooltip,
        "icon": "external link",
        "targetBlank": True,
    }
