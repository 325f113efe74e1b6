"""What all dashboards have in common: the grid, variables, marks on the time axis, and links."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from boards import colours
from boards.panels import Panel
from boards.targets import DATASOURCE

COLUMNS = 24

# Where a browser on the same machine finds them; elsewhere, add ?var-prometheus=http://… to the
# address of a dashboard.
PROMETHEUS = "http://localhost:9090"
ALERTMANAGER = "http://localhost:9093"


@dataclass(frozen=True)
class Line:
    """Panels side by side: their height in grid units, and their widths in columns."""

    height: int
    panels: Sequence[Panel]
    widths: Sequence[int]


def line(height: int, *panels: Panel, widths: Sequence[int] = ()) -> Line:
    """Panels side by side, of the same width unless told otherwise.

    Args:
        height: in grid units of 38 px, gap included.
        panels: from left to right.
        widths: in columns, of which there are 24.
    """
    return Line(height, panels, widths or [COLUMNS // len(panels)] * len(panels))


def dashboard(
    uid: str,
    title: str,
    description: str,
    *,
    variables: list[dict[str, Any]],
    rows: dict[str, list[Line]],
) -> dict[str, Any]:
    """A whole dashboard, in the order it is read.

    Args:
        uid: stable id, part of its address.
        title: its name in menus.
        description: the question it answers.
        variables: what can be chosen, beside the data source.
        rows: lines of panels by the title of their row; the row without a title has no header.
    """
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["stack"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "templating": {"list": [DATA_SOURCE, *variables, *ADDRESSES]},
        "annotations": {"list": ANNOTATIONS},
        "links": LINKS,
        "panels": _grid(rows),
    }


def choice(
    name: str, label: str, description: str, query: str, *, multi: bool = True
) -> dict[str, Any]:
    """A variable whose values Prometheus knows.

    "All" is offered even where one value is meant: only then does Grafana escape the value for a
    regular expression, and URL rules may hold characters that need it.
    """
    return {
        "type": "query",
        "name": name,
        "label": label,
        "description": description,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": multi,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
        "options": [],
        "hide": 0,
    }


DATA_SOURCE = {
    "type": "datasource",
    "name": "datasource",
    "label": "Data source",
    "query": "prometheus",
    "current": {"text": "Prometheus", "value": "prometheus"},
    "options": [],
    "hide": 1,
}

INSTANCE = choice(
    "instance",
    "Replica",
    "Replicas of flask-app; panels about nginx show all of them together.",
    "label_values(gunicorn_workers, instance)",
)

ENDPOINTS = choice(
    "endpoint",
    "Endpoint",
    "Flask's URL rules, as seen in nginx's metrics.",
    "label_values(nginx_endpoint_requests_total, endpoint)",
)


def _address(name: str, url: str) -> dict[str, Any]:
    option = {"text": url, "value": url, "selected": True}
    return {
        "type": "textbox",
        "name": name,
        "query": url,
        "current": option,
        "options": [option],
        "hide": 2,
    }


ADDRESSES = [_address("prometheus", PROMETHEUS), _address("alertmanager", ALERTMANAGER)]


def _mark(name: str, colour: str, expr: str, title: str, text: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "target": {"refId": "Anno", "expr": expr, "interval": "5s"},
        "titleFormat": title,
        "textFormat": text,
        **more,
    }


def _onset(condition: str) -> str:
    """PromQL for when a condition begins: drawn for as long as it holds, it would cover the panels.

    Args:
        condition: PromQL with a `%s` where an offset belongs.
    """
    return f"({condition % ''}) unless ({condition % ' offset $__interval'})"


STARTED = "gunicorn_worker_start_time_seconds"

ANNOTATIONS = [
    _mark(
        "Alerts",
        colours.BAD,
        _onset('ALERTS{alertstate="firing", severity!="info"}%s'),
        "{{alertname}}",
        "{{severity}} {{endpoint}}",
        tagKeys="severity",
    ),
    _mark(
        "Reloads",
        colours.NEUTRAL,
        _onset("changes(nginx_worker_process_id[$__rate_interval]%s) > 0"),
        "nginx workers replaced",
        "Configuration reloaded, or nginx restarted",
    ),
    # All workers started together: a deploy, reload or restart, not the replacing of a single one.
    # The value, in milliseconds, is the time of the mark.
    _mark(
        "Restarts",
        "purple",
        f"min by (instance) ({STARTED}) * 1000"
        f" and max by (instance) ({STARTED}) - min by (instance) ({STARTED}) < 10",
        "gunicorn started its workers",
        "{{instance}}",
        useValueForTime="on",
    ),
    _mark(
        "Worker failures",
        colours.WAITED,
        _onset('instance_reason:gunicorn_worker_exits:increase1m{reason!="exit"}%s > 0'),
        "Worker ended: {{reason}}",
        "{{instance}}",
    ),
]

LINKS = [
    {
        "type": "dashboards",
        "title": "Dashboards",
        "tags": ["stack"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
    },
    *(
        {
            "type": "link",
            "title": title,
            "url": url,
            "icon": "external link",
            "tooltip": tooltip,
            "targetBlank": True,
        }
        for title, url, tooltip in (
            (
                "Prometheus",
                "${prometheus}/alerts",
                "Rules, alerts and targets as Prometheus sees them",
            ),
            ("Alertmanager", "${alertmanager}/#/alerts", "Who was told, and what is silenced"),
        )
    ),
]


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
