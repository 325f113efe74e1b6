"""What all dashboards have in common: the grid, variables, marks on the time axis, and links."""

from typing import Any

from boards import colours
from boards.panels import DATASOURCE, Panel

COLUMNS = 24

# Where a browser on the same machine finds them. Published elsewhere: append ?var-prometheus=http://… to the address.
PROMETHEUS = "http://localhost:9090"
ALERTMANAGER = "http://localhost:9093"

# A height in grid units of 30 px, and panels side by side with their widths in columns.
Line = tuple[int, list[tuple[int, Panel]]]


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

    "All" is offered even where one value is meant: only then does Grafana escape the value for a regular expression,
    and URL rules may hold characters that need it.
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
    "hide": 0,
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


STARTED = "gunicorn_worker_start_time_seconds"

ANNOTATIONS = [
    _mark(
        "Alerts",
        colours.BAD,
        'ALERTS{alertstate="firing"}',
        "{{alertname}}",
        "{{severity}} {{endpoint}}",
        tagKeys="severity",
    ),
    _mark(
        "nginx reloads",
        colours.NEUTRAL,
        "changes(nginx_worker_process_id[$__rate_interval]) > 0",
        "nginx workers replaced",
        "Configuration reloaded, or nginx restarted",
    ),
    # All workers started together: a deploy, reload or restart, not the replacing of a single one.
    # The value, in milliseconds, is the time of the mark.
    _mark(
        "App restarts",
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
        'instance_reason:gunicorn_worker_exits:increase1m{reason!="exit"} > 0',
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
    panels: list[Panel] = []
    top = 0

    def place(panel: Panel, left: int, width: int, height: int) -> None:
        position = {"x": left, "y": top, "w": width, "h": height}
        panels.append({"id": len(panels) + 1, "gridPos": position, **panel})

    for title, lines in rows.items():
        if title:
            place({"type": "row", "title": title, "collapsed": False, "panels": []}, 0, COLUMNS, 1)
            top += 1
        for height, line in lines:
            left = 0
            for width, panel in line:
                place(panel, left, width, height)
                left += width
            top += height
    return panels
