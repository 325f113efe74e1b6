"""Panels of each kind, made from signals, in Grafana's dashboard JSON model (schema 41).

Grafana's own SDK for Python was tried first; it has no type common to its panels, no alert list and no annotations of
Prometheus, so every panel would have gone through a layer like this one all the same.
"""

from typing import Any

from boards import colours
from boards.signals import Query, Signal
from boards.signals.workers import STUCK

Panel = dict[str, Any]
Override = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

TO_ENDPOINT = {
    "title": "Open this endpoint",
    "url": "/d/endpoint/endpoint?var-endpoint=${__field.labels.endpoint:percentencode}"
    "&${datasource:queryparam}&${instance:queryparam}&${__url_time_range}",
}

LEGEND = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
TOOLTIP = {"mode": "multi", "sort": "desc"}


def timeseries(
    signal: Signal,
    *,
    stacked: bool = False,
    bars: bool = False,
    logarithmic: bool = False,
    most: float | None = None,
) -> Panel:
    """Lines over time.

    Args:
        signal: what to draw.
        stacked: as areas on top of each other, for parts of a whole.
        bars: as bars, for what happens now and then.
        logarithmic: on a logarithmic axis that has a zero.
        most: upper end of the axis, in the signal's unit; the data decides where it is None.
    """
    custom: dict[str, Any] = {
        "drawStyle": "bars" if bars else "line",
        "lineWidth": 1 if stacked or bars else 2,
        "fillOpacity": 70 if stacked or bars else 6,
        "showPoints": "auto",
        "pointSize": 4,
        "spanNulls": False,
        "axisSoftMin": 0,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    if logarithmic:
        custom["scaleDistribution"] = {"type": "symlog", "log": 10, "linearThreshold": 1}
    defaults: dict[str, Any] = {"min": 0, "color": {"mode": "palette-classic-by-name"}}
    if most is not None:
        defaults["max"] = most
    if any("{{endpoint}}" in query.legend for query in signal.queries):
        defaults["links"] = [TO_ENDPOINT]
    overrides = [_named(name, _colour(colour)) for name, colour in signal.colours.items()]
    overrides += [_named(query.legend, *LIMIT_LINE) for query in signal.queries if query.threshold]
    return _panel(
        "timeseries",
        signal,
        targets=_targets(signal.queries),
        defaults=defaults,
        custom=custom,
        overrides=overrides,
        options={"legend": LEGEND, "tooltip": TOOLTIP},
    )


def tile(signal: Signal, *, low_is_bad: bool = False) -> Panel:
    """One number with its recent course, on a background that says whether it is fine.

    Args:
        signal: a query and, where there is one, the limit that decides the colour.
        low_is_bad: whether the values below the limit are the bad ones.
    """
    number, *limits = signal.queries
    below, above = (colours.BAD, colours.GOOD) if low_is_bad else (colours.GOOD, colours.BAD)
    return _panel(
        "stat",
        signal,
        targets=_targets((number,)) + [_target(limit, "limit", instant=True) for limit in limits],
        transformations=[_limit_as_threshold("limit", below, above) for _ in limits],
        defaults={
            "min": 0,
            "color": {"mode": "thresholds"},
            "thresholds": _steps({None: colours.NEUTRAL}),
            "mappings": [_special("null+nan", signal.empty or "No data", colours.IDLE)],
        },
        options={
            # Not the last value that is a number: it would outlive the traffic, or the target, it was measured on.
            "reduceOptions": {"calcs": ["last"], "fields": "", "values": False},
            "colorMode": "background",
            "graphMode": "area",
            "textMode": "value",
            "justifyMode": "center",
            "wideLayout": False,
        },
    )


def heatmap(signal: Signal) -> Panel:
    """A histogram's buckets over time."""
    return _panel(
        "heatmap",
        signal,
        targets=_targets(signal.queries, fmt="heatmap"),
        options={
            "calculate": False,
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "exponent": 0.5},
            "cellGap": 1,
            "filterValues": {"le": 1e-9},
            "rowsFrame": {"layout": "auto"},
            "yAxis": {"unit": signal.unit, "axisPlacement": "left"},
            "legend": {"show": True},
            "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        },
        custom={"scaleDistribution": {"type": "linear"}},
        unit="short",
    )


def states(signal: Signal, mappings: list[dict[str, Any]]) -> Panel:
    """A strip per series, in the colour and with the text that its value maps to."""
    return _panel(
        "state-timeline",
        signal,
        targets=_targets(signal.queries),
        defaults={"color": {"mode": "thresholds"}, "mappings": mappings},
        custom={"fillOpacity": 80, "lineWidth": 0, "spanNulls": False},
        options={
            "showValue": "auto",
            "rowHeight": 0.8,
            "mergeValues": True,
            "alignValue": "left",
            "legend": {**LEGEND, "showLegend": False},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    )


def alerts(signal: Signal) -> Panel:
    """The alerts that are active now, one a row."""
    columns = ["severity", "alertname", "alertstate", "endpoint", "job", "instance", "Value"]
    return _panel(
        "table",
        signal,
        targets=_targets(signal.queries, fmt="table", instant=True),
        transformations=[
            {
                "id": "filterFieldsByName",
                "options": {"include": {"names": columns}},
            },
            {
                "id": "organize",
                "options": {
                    "indexByName": {name: index for index, name in enumerate(columns)},
                    "renameByName": {"alertname": "alert", "alertstate": "state", "Value": "for"},
                },
            },
        ],
        defaults={"custom": {"align": "left", "cellOptions": {"type": "auto"}}},
        overrides=[
            _named(
                "state",
                {"id": "custom.cellOptions", "value": {"type": "color-text"}},
                {
                    "id": "mappings",
                    "value": [_texts({"firing": colours.BAD, "pending": colours.WARNING})],
                },
                {"id": "custom.width", "value": 90},
            ),
            _named(
                "severity",
                {"id": "custom.width", "value": 90},
            ),
            _named(
                "for", {"id": "unit", "value": signal.unit}, {"id": "custom.width", "value": 110}
            ),
            _named("endpoint", {"id": "links", "value": [TO_ENDPOINT]}),
        ],
        options={
            "showHeader": True,
            "cellHeight": "sm",
            "sortBy": [{"displayName": "for", "desc": False}],
        },
    )


LIMIT_LINE: tuple[Override, ...] = (
    {"id": "color", "value": {"mode": "fixed", "fixedColor": colours.THRESHOLD}},
    {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
    {"id": "custom.lineWidth", "value": 1},
    {"id": "custom.fillOpacity", "value": 0},
    {"id": "custom.stacking", "value": {"mode": "none"}},
    {"id": "custom.drawStyle", "value": "line"},
    {"id": "custom.showPoints", "value": "never"},
)

WORKER_STATES = [
    {"type": "value", "options": {"0": {"text": "idle", "color": colours.IDLE, "index": 0}}},
    {
        "type": "range",
        "options": {"from": 1, "to": STUCK - 1, "result": {"color": colours.NEUTRAL, "index": 1}},
    },
    {
        "type": "range",
        "options": {
            "from": STUCK,
            "to": None,
            "result": {"text": "stuck", "color": colours.BAD, "index": 2},
        },
    },
]

TARGET_STATES = [
    {
        "type": "value",
        "options": {
            "0": {"text": "down", "color": colours.BAD, "index": 0},
            "1": {"text": "up", "color": colours.GOOD, "index": 1},
        },
    },
    {
        "type": "range",
        "options": {
            "from": 0,
            "to": 1,
            "result": {"text": "partly", "color": colours.WARNING, "index": 2},
        },
    },
]


def _panel(
    kind: str,
    signal: Signal,
    *,
    targets: list[dict[str, Any]],
    options: dict[str, Any],
    defaults: dict[str, Any] | None = None,
    custom: dict[str, Any] | None = None,
    overrides: list[Override] | None = None,
    transformations: list[dict[str, Any]] | None = None,
    unit: str | None = None,
) -> Panel:
    field = {"unit": unit or signal.unit, "noValue": signal.empty or "No data", **(defaults or {})}
    if custom:
        field["custom"] = custom
    return {
        "type": kind,
        "title": signal.title,
        "description": signal.description,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": field, "overrides": overrides or []},
        "options": options,
        "transformations": transformations or [],
    }


def _targets(
    queries: tuple[Query, ...], *, fmt: str = "time_series", instant: bool = False
) -> list[dict[str, Any]]:
    return [
        _target(query, chr(ord("A") + index), fmt=fmt, instant=instant)
        for index, query in enumerate(queries)
    ]


def _target(
    query: Query, ref: str, *, fmt: str = "time_series", instant: bool = False
) -> dict[str, Any]:
    return {
        "refId": ref,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": fmt,
        "instant": instant,
        "range": not instant,
    }


def _limit_as_threshold(ref: str, below: str, above: str) -> dict[str, Any]:
    """Colour query A by the limit that query `ref` returns.

    Grafana makes a threshold step of each mapped field and lets the first one count from minus infinity, whatever its
    value: that is what the time of the answer is mapped for.
    """
    return {
        "id": "configFromData",
        "options": {
            "configRefId": ref,
            "applyTo": {"id": "byFrameRefID", "options": "A"},
            "mappings": [
                {
                    "fieldName": "Time",
                    "handlerKey": "threshold1",
                    "handlerArguments": {"threshold": {"color": below}},
                },
                {
                    "fieldName": ref,
                    "handlerKey": "threshold1",
                    "handlerArguments": {"threshold": {"color": above}},
                },
            ],
        },
    }


def _steps(colour_from: dict[float | None, str]) -> dict[str, Any]:
    return {
        "mode": "absolute",
        "steps": [{"value": value, "color": colour} for value, colour in colour_from.items()],
    }


def _named(name: str, *properties: Override) -> dict[str, Any]:
    return {"matcher": {"id": "byName", "options": name}, "properties": list(properties)}


def _colour(colour: str) -> Override:
    return {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}


def _special(match: str, text: str, colour: str) -> dict[str, Any]:
    return {
        "type": "special",
        "options": {"match": match, "result": {"text": text, "color": colour}},
    }


def _texts(colour_of: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "value",
        "options": {
            text: {"color": colour, "index": index}
            for index, (text, colour) in enumerate(colour_of.items())
        },
    }
