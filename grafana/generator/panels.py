"""Panels of each kind, made from signals, in Grafana's dashboard JSON model.

Grafana's SDK for Python was tried first: it has no type common to its panels and lacks what
annotations of Prometheus need, so everything would have gone through a layer like this anyway.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from generator import colours
from generator.mappings import ALERT_STATES, Mapping, no_value
from generator.signals import Signal
from generator.targets import DATASOURCE, now, over_time

Panel = dict[str, Any]
Properties = dict[str, Any]

LEGEND = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}

SCALES: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear"},
    "log": {"type": "log", "log": 10},
    "symlog": {"type": "symlog", "log": 10, "linearThreshold": 1},
}

# A series' route is a label; a table's is a cell.
ROUTE_OF_SERIES = "${__field.labels.route:percentencode}"
ROUTE_OF_CELL = "${__value.text:percentencode}"

LIMIT_LINE: Properties = {
    "color": {"mode": "fixed", "fixedColor": colours.BAD},
    "custom.drawStyle": "line",
    "custom.lineWidth": 1,
    "custom.lineStyle": {"fill": "dash", "dash": [8, 6]},
    "custom.fillOpacity": 0,
    "custom.stacking": {"mode": "none"},
    "custom.showPoints": "never",
}

TOTAL_LINE: Properties = {
    "custom.lineWidth": 2,
    "custom.fillOpacity": 0,
    "custom.stacking": {"mode": "none"},
}


def timeseries(
    signal: Signal,
    *,
    kind: Literal["lines", "stack", "bars"] = "lines",
    scale: Literal["linear", "log", "symlog"] = "linear",
    most: float | None = None,
) -> Panel:
    """Values over time.

    Args:
        signal: what to draw.
        kind: lines; areas on top of each other, for parts of a whole; bars, for what happens
            now and then.
        scale: log where values lie orders of magnitude apart; symlog where zero is one of them.
        most: upper end of the axis, in the signal's unit; the data decides where it is None.
    """
    field: Properties = {
        "color": {"mode": "palette-classic"},
        "custom": {
            "drawStyle": "bars" if kind == "bars" else "line",
            "lineWidth": 2 if kind == "lines" else 0,
            "fillOpacity": 0 if kind == "lines" else 75,
            "showPoints": "auto",
            "pointSize": 4,
            "spanNulls": False,
            "stacking": {"mode": "normal" if kind == "stack" else "none", "group": "A"},
            "scaleDistribution": SCALES[scale],
        },
    }
    if scale != "log":
        field["min"] = 0
    if most is not None:
        field["max"] = most
    if any("{{route}}" in query.legend for query in signal.queries):
        field["links"] = [_to_route(ROUTE_OF_SERIES)]
    return _panel("timeseries", signal) | {
        "targets": over_time(signal.queries),
        "fieldConfig": {
            "defaults": _defaults(signal) | field,
            "overrides": [
                *(_named(name, _fixed(colour)) for name, colour in signal.colours.items()),
                *(_named(query.legend, LIMIT_LINE) for query in signal.queries if query.threshold),
                *(_named(query.legend, TOTAL_LINE) for query in signal.queries if query.total),
            ],
        },
        "options": {"legend": LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    }


def stat(signal: Signal, *, low_is_bad: bool = False) -> Panel:
    """One number with its recent course, on a background that says whether it is fine.

    Args:
        signal: a query and, where there is one, the limit that decides the colour.
        low_is_bad: whether the values below the limit are the bad ones.
    """
    number, *limits = signal.queries
    below, above = (colours.BAD, colours.GOOD) if low_is_bad else (colours.GOOD, colours.BAD)
    # The column `start` is for _as_threshold.
    limits = [
        replace(limit, expr=f'label_replace({limit.expr}, "start", "0", "", "")')
        for limit in limits
    ]
    field = {
        "min": 0,
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": [{"value": None, "color": colours.NEUTRAL}]},
        "mappings": [no_value(signal.empty or "No data")],
    }
    return _panel("stat", signal) | {
        "targets": over_time((number,)) + [now("limit", limit) for limit in limits],
        "transformations": [_as_threshold("limit", below, above) for _ in limits],
        "fieldConfig": {"defaults": _defaults(signal) | field, "overrides": []},
        "options": {
            # Not the last value that is a number: it would outlive the traffic or the target it
            # was measured on.
            "reduceOptions": {"calcs": ["last"], "fields": "", "values": False},
            "colorMode": "background",
            "graphMode": "area",
            "textMode": "value",
            "justifyMode": "center",
            "wideLayout": False,
        },
    }


def heatmap(signal: Signal) -> Panel:
    """A histogram's buckets over time."""
    # This kind has no text of its own for when there is nothing.
    explained = f"{signal.description} “No data” is: {signal.empty}."
    return _panel("heatmap", signal) | {
        "description": explained,
        "targets": over_time(signal.queries, "heatmap"),
        "fieldConfig": {
            "defaults": {"unit": "short", "decimals": 0},
            "overrides": [],
        },
        "options": {
            "calculate": False,
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "exponent": 0.5},
            "cellGap": 1,
            "filterValues": {"le": 1e-9},
            "rowsFrame": {"layout": "auto"},
            "yAxis": {"unit": signal.unit, "axisPlacement": "left"},
            "legend": {"show": False},
            "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
        },
    }


def states(signal: Signal, mappings: Sequence[Mapping], *, texts: bool = True) -> Panel:
    """A strip per series, in the colour that its value maps to.

    Args:
        signal: what to draw.
        mappings: colour and text of the values.
        texts: write them on the strips; else, where states are too short for it, in a legend.
    """
    field = {
        "color": {"mode": "fixed", "fixedColor": colours.IDLE},
        "mappings": list(mappings),
        "custom": {"fillOpacity": 80, "lineWidth": 0, "spanNulls": False},
    }
    return _panel("state-timeline", signal) | {
        "targets": over_time(signal.queries),
        "fieldConfig": {"defaults": _defaults(signal) | field, "overrides": []},
        "options": {
            "showValue": "auto" if texts else "never",
            "rowHeight": 0.8,
            "mergeValues": True,
            "alignValue": "left",
            "legend": LEGEND | {"showLegend": not texts},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    }


def alerts(signal: Signal) -> Panel:
    """The alerts that are active now, one a row; the value is for how long, in seconds."""
    columns = ["severity", "alertname", "alertstate", "route", "instance", "Value"]
    narrow = {"custom.width": 80}
    return _panel("table", signal) | {
        "targets": [now("A", query) for query in signal.queries],
        "transformations": [
            {"id": "filterFieldsByName", "options": {"include": {"names": columns}}},
            {
                "id": "organize",
                "options": {
                    "indexByName": {name: index for index, name in enumerate(columns)},
                    "renameByName": {"alertname": "alert", "alertstate": "state", "Value": "for"},
                },
            },
        ],
        "fieldConfig": {
            "defaults": _defaults(signal) | {"custom": {"minWidth": 100}},
            "overrides": [
                # The text for an empty table would stand in each empty cell, too.
                _matching("/.*/", {"noValue": " "}),
                _named("severity", narrow),
                _named("alert", {"links": [_to_alerts()]}),
                _named(
                    "state",
                    narrow
                    | {"mappings": ALERT_STATES, "custom.cellOptions": {"type": "color-text"}},
                ),
                _named("route", {"links": [_to_route(ROUTE_OF_CELL)]}),
                _named("for", narrow | {"unit": signal.unit, "decimals": 0}),
            ],
        },
        "options": {"cellHeight": "sm", "sortBy": [{"displayName": "for", "desc": False}]},
    }


def _panel(kind: str, signal: Signal) -> Panel:
    return {
        "type": kind,
        "title": signal.title,
        "description": signal.description,
        "datasource": DATASOURCE,
        "transformations": [],
    }


def _defaults(signal: Signal) -> Properties:
    return {"unit": signal.unit, "noValue": signal.empty or "No data"}


def _as_threshold(ref: str, below: str, above: str) -> dict[str, Any]:
    """Colour query A by the value of query `ref`.

    Grafana makes a threshold step of each mapped column and lets the first step count from minus
    infinity, whatever its value: the column `start` is there to be that step.
    """
    return {
        "id": "configFromData",
        "options": {
            "configRefId": ref,
            "applyTo": {"id": "byFrameRefID", "options": "A"},
            "mappings": [
                {
                    "fieldName": column,
                    "handlerKey": "threshold1",
                    "handlerArguments": {"threshold": {"color": colour}},
                }
                for column, colour in (("start", below), ("Value", above))
            ],
        },
    }


def _to_route(route: str) -> dict[str, Any]:
    variables = f"var-route={route}&${{datasource:queryparam}}&${{instance:queryparam}}"
    url = f"/d/route/route?{variables}&${{__url_time_range}}"
    return {"title": "Open this route", "url": url}


def _to_alerts() -> dict[str, Any]:
    url = "${prometheus}/alerts"
    return {"title": "Description and runbook, in Prometheus", "url": url, "targetBlank": True}


def _fixed(colour: str) -> Properties:
    return {"color": {"mode": "fixed", "fixedColor": colour}}


def _named(name: str, properties: Properties) -> dict[str, Any]:
    return _override("byName", name, properties)


def _matching(pattern: str, properties: Properties) -> dict[str, Any]:
    return _override("byRegexp", pattern, properties)


def _override(matcher: str, options: str, properties: Properties) -> dict[str, Any]:
    return {
        "matcher": {"id": matcher, "options": options},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }
