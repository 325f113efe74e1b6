"""Panels of each kind, made from signals, in Grafana's dashboard JSON model.

Grafana's SDK for Python was tried first. It has no common type for its panels and lacks fields
that Prometheus annotations need, so it would have needed a layer like this one anyway.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from generator import colours
from generator.mappings import ALERT_STATES, ROUTE_STATES, Mapping, no_value
from generator.signals import NO_REQUESTS, Query, Signal, general
from generator.signals import routes as routes_signals
from generator.signals.routes import COLUMNS
from generator.targets import DATASOURCE, now, over_time

Panel = dict[str, Any]
Properties = dict[str, Any]

LEGEND = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
# For many lines: a table on the panel's right side.
LEGEND_OF_ROUTES = {
    "showLegend": True,
    "displayMode": "table",
    "placement": "right",
    "calcs": ["lastNotNull", "max"],
}

SCALES: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear"},
    "log": {"type": "log", "log": 10},
}

# In a time series the route is a label; in a table it is a cell.
ROUTE_OF_SERIES = "${__field.labels.route:percentencode}"
ROUTE_OF_CELL = "${__value.text:percentencode}"
ROUTE_OF_ROW = "${__data.fields.route:percentencode}"

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
    scale: Literal["linear", "log"] = "linear",
    most: float | None = None,
) -> Panel:
    """Values over time.

    Args:
        signal: what to draw.
        kind: lines; areas on top of each other, for parts of a whole; bars, for
            occasional events.
        scale: log where values lie orders of magnitude apart.
        most: upper end of the axis, in the signal's unit; None lets the data decide.
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
    by_route = any("{{route}}" in query.legend for query in signal.queries)
    if by_route:
        field["links"] = [_to_route(ROUTE_OF_SERIES)]
    # Stats need the NaN; in an empty chart it would hide the text that says why it is empty.
    queries = tuple(
        replace(query, expr=query.expr.removesuffix(" or vector(NaN)")) for query in signal.queries
    )
    targets = over_time(queries)
    return _panel("timeseries", signal) | {
        "targets": targets,
        "fieldConfig": {
            "defaults": _defaults(signal) | field,
            "overrides": [
                *(_named(name, _fixed(colour)) for name, colour in signal.colours.items()),
                *(
                    _override("byFrameRefID", target["refId"], LIMIT_LINE)
                    for query, target in zip(queries, targets, strict=True)
                    if query.threshold
                ),
                *(_named(query.legend, TOTAL_LINE) for query in queries if query.total),
            ],
        },
        "options": {
            "legend": LEGEND_OF_ROUTES if by_route else LEGEND,
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def stat(signal: Signal, *, low_is_bad: bool = False, trend: bool = True) -> Panel:
    """One number with its recent trend; the background's colour says whether it is fine.

    Args:
        signal: a query and, where there is one, the limit that decides the colour.
        low_is_bad: whether values below the limit are bad.
        trend: whether to draw the recent trend; without it, the query is asked for the end only.
    """
    number, *limits = signal.queries
    if signal.basis and "{{" not in number.legend:
        # The basis is shown in place of the name; without traffic there is neither.
        number = replace(number, legend=" ")
    (target,) = over_time((number,))
    if not trend:
        target |= {"range": False, "instant": True}
    below, above = (colours.BAD, colours.GOOD) if low_is_bad else (colours.GOOD, colours.BAD)
    limits = [_with_start(limit) for limit in limits]
    field = {
        "min": 0,
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": [{"value": None, "color": colours.NEUTRAL}]},
        "mappings": [no_value(signal.empty or "No data")],
    }
    if number.legend == "{{route}}":
        field["links"] = [_to_route(ROUTE_OF_SERIES)]
    bases = [signal.basis] if signal.basis else []
    return _panel("stat", signal) | {
        "targets": [target]
        + [now("limit", limit) for limit in limits]
        + [now("basis", basis) for basis in bases],
        "transformations": [
            _as_threshold("limit", "A", below, above, column="" if bases else "Value")
            for _ in limits
        ]
        + [_as_name("basis", "A") for _ in bases],
        "fieldConfig": {"defaults": _defaults(signal) | field, "overrides": []},
        "options": {
            # Not "lastNotNull": it would keep showing the last number after the traffic or the
            # target has gone.
            "reduceOptions": {"calcs": ["last"], "fields": "", "values": False},
            "colorMode": "background",
            "graphMode": "area" if trend else "none",
            "textMode": "value_and_name" if bases else "value",
            # A long name would get tiny letters.
            "text": {"titleSize": 12} if bases else {},
            "justifyMode": "center",
            "wideLayout": False,
        },
    }


def heatmap(signal: Signal) -> Panel:
    """A histogram's buckets over time."""
    # An empty heatmap cannot show a text of its own.
    explained = f"{signal.description} “No data” means: {signal.empty}."
    return _panel("heatmap", signal) | {
        "description": explained,
        # Wide cells: one of a pixel could not be seen.
        "maxDataPoints": 120,
        "targets": over_time(signal.queries, "heatmap"),
        "fieldConfig": {
            "defaults": {"unit": "short", "decimals": 0},
            "overrides": [],
        },
        "options": {
            "calculate": False,
            # Reversed: the rarest cells differ most from the background, in both themes.
            "color": {"mode": "scheme", "scheme": "Cool", "steps": 64, "reverse": True},
            # Neighbours overlap: with 0, anti-aliasing leaves a seam around each cell.
            "cellGap": -1,
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
        texts: whether the strips show their texts; if not, as for short states, a legend does.
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


def routes(title: str, description: str) -> Panel:
    """A row for each route: what is wrong with it, and the columns of `./stack top`.

    Args:
        title: the panel's title.
        description: what it shows, what is normal, what to do when it is not.
    """
    signal = Signal(title, description, "short", (), empty=NO_REQUESTS)
    columns = {column.key: column for column in COLUMNS}
    limited = [column for column in COLUMNS if column.limit]
    colours_of = {
        column.key: (colours.BAD, colours.GOOD)
        if column.low_is_bad
        else (colours.GOOD, colours.BAD)
        for column in limited
    }
    cells = {
        "state": Query(routes_signals.STATE, ""),
        **{key: Query(column.on_dashboard, "") for key, column in columns.items()},
        "order": Query(routes_signals.ORDER, ""),
    }
    order = ["route", "Value #state", "Trend #trend", *(f"Value #{key}" for key in columns)]
    titles = {f"Value #{column.key}": column.title for column in COLUMNS}
    return _panel("table", signal) | {
        # A sparkline needs no more points.
        "maxDataPoints": 100,
        "targets": [
            over_time((Query(routes_signals.REQUEST_TREND, "{{route}}"),))[0] | {"refId": "trend"},
            *(now(ref, query) for ref, query in cells.items()),
            *(
                now(f"limit-{column.key}", _with_start(general(column.limit)))
                for column in limited
                if column.limit
            ),
        ],
        "transformations": [
            *(
                _as_threshold(f"limit-{key}", key, below, above)
                for key, (below, above) in colours_of.items()
            ),
            {"id": "timeSeriesTable", "options": {"trend": {"stat": "lastNotNull"}}},
            {"id": "joinByField", "options": {"byField": "route", "mode": "outer"}},
            {
                "id": "sortBy",
                "options": {"sort": [{"field": "Value #order", "desc": True}]},
            },
            {
                "id": "filterFieldsByName",
                "options": {"include": {"names": order}},
            },
            {
                "id": "organize",
                "options": {
                    "indexByName": {name: index for index, name in enumerate(order)},
                    "renameByName": titles | {"Value #state": "State", "Trend #trend": "Requests"},
                },
            },
        ],
        "fieldConfig": {
            "defaults": _defaults(signal) | {"custom": {"width": 92, "align": "right"}},
            "overrides": [
                # Otherwise each empty cell would show the text for an empty table.
                _matching("/.*/", {"noValue": " "}),
                _named(
                    "route",
                    {
                        # Takes the width that the other columns leave.
                        "custom.width": None,
                        "custom.minWidth": 160,
                        "custom.align": "left",
                        "links": [_to_route(ROUTE_OF_ROW)],
                    },
                ),
                _named(
                    "State",
                    {
                        "custom.align": "left",
                        "custom.width": 150,
                        "mappings": ROUTE_STATES,
                        "custom.cellOptions": {"type": "color-text"},
                    },
                ),
                _named(
                    "Requests",
                    {
                        "custom.width": 90,
                        "custom.cellOptions": {"type": "sparkline", "hideValue": True},
                        "color": {"mode": "fixed", "fixedColor": colours.NEUTRAL},
                    },
                ),
                *(
                    _named(
                        column.title,
                        {"unit": column.unit, "mappings": [no_value(" ")]}
                        | (
                            {
                                "color": {"mode": "thresholds"},
                                "custom.cellOptions": {"type": "color-text"},
                            }
                            if column.limit
                            else {}
                        ),
                    )
                    for column in COLUMNS
                ),
            ],
        },
        "options": {"cellHeight": "sm", "showHeader": True},
    }


def alerts(signal: Signal) -> Panel:
    """The alerts that are active now, one per row; the value is their age in seconds."""
    columns = ["severity", "alertname", "alertstate", "route", "instance", "Value"]
    narrow = {"custom.width": 70}
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
                # Otherwise each empty cell would show the text for an empty table.
                _matching("/.*/", {"noValue": " "}),
                _named("severity", narrow),
                # Wide enough for the longest name.
                _named("alert", {"custom.width": 190, "links": [_to_runbook()]}),
                _named(
                    "state",
                    narrow
                    | {"mappings": ALERT_STATES, "custom.cellOptions": {"type": "color-text"}},
                ),
                _named("route", {"links": [_to_route(ROUTE_OF_CELL)]}),
                _named("for", narrow | {"unit": signal.unit, "decimals": 0}),
            ],
        },
        "options": {
            "cellHeight": "sm",
            "sortBy": [
                {"displayName": "state", "desc": False},
                {"displayName": "for", "desc": True},
            ],
        },
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


def _with_start(limit: Query) -> Query:
    """The limit with the column that `_as_threshold` needs."""
    return replace(limit, expr=f'label_replace({limit.expr}, "start", "0", "", "")')


def _as_threshold(
    ref: str, field: str, below: str, above: str, *, column: str = ""
) -> dict[str, Any]:
    """Colour the values of query `field` by the value of query `ref`.

    Grafana makes a threshold step from each mapped column, and the first step begins at minus
    infinity, whatever its value. The column `start` is that first step.

    Args:
        ref: the query of the limit.
        field: the query that is coloured.
        below: the colour below the limit.
        above: the colour above it.
        column: the name of the limit's value. Grafana calls it "Value" where this is the panel's
            only query for a table, and "Value #ref" otherwise.
    """
    steps = (("start", below), (column or f"Value #{ref}", above))
    return _config(
        ref,
        field,
        [
            {
                "fieldName": column,
                "handlerKey": "threshold1",
                "handlerArguments": {"threshold": {"color": colour}},
            }
            for column, colour in steps
        ],
    )


def _as_name(ref: str, field: str) -> dict[str, Any]:
    """Name the values of query `field` by the label `text` of query `ref`."""
    return _config(ref, field, [{"fieldName": "text", "handlerKey": "displayName"}])


def _config(ref: str, field: str, mappings: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "configFromData",
        "options": {
            "configRefId": ref,
            "applyTo": {"id": "byFrameRefID", "options": field},
            "mappings": mappings,
        },
    }


def _to_route(route: str) -> dict[str, Any]:
    kept = "&".join(f"${{{name}:queryparam}}" for name in ("datasource", "stack", "instance"))
    url = f"/d/route/route?var-route={route}&{kept}&${{__url_time_range}}"
    return {"title": "Open this route", "url": url}


def _to_runbook() -> dict[str, Any]:
    url = "${runbooks}#${__value.text}"
    return {"title": "Open the runbook of this alert", "url": url, "targetBlank": True}


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
