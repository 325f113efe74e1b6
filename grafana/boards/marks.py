"""Annotations: what happened, as marks on the time axis of every panel."""

from dataclasses import dataclass
from typing import Any

from boards import colours
from boards.targets import DATASOURCE


@dataclass(frozen=True)
class Mark:
    """One kind of event.

    Args:
        name: what its switch above the panels is called.
        colour: of the marks.
        expr: PromQL; there is a mark where it has a positive value.
        title: heading of a mark; `{{label}}` stands for a label's value.
        text: below the heading.
        at_value: the value itself, in Unix milliseconds, is the time of the mark.
        switch: whether there is a switch to turn these marks off.
    """

    name: str
    colour: str
    expr: str
    title: str
    text: str
    at_value: bool = False
    switch: bool = True


def onset(condition: str) -> str:
    """PromQL for when a condition begins: drawn for as long as it holds, it would cover the panels.

    Args:
        condition: PromQL with a `%s` where an offset belongs.
    """
    return f"({condition % ''}) unless ({condition % ' offset $__interval'})"


STARTED = "gunicorn_worker_start_time_seconds"

MARKS = (
    Mark(
        name="Alerts",
        colour=colours.BAD,
        expr=onset('ALERTS{alertstate="firing", severity!="info"}%s'),
        title="{{alertname}} fires",
        text="{{severity}} {{endpoint}}",
    ),
    Mark(
        name="Reloads",
        colour=colours.NEUTRAL,
        expr=onset("changes(nginx_worker_process_id[$__rate_interval]%s) > 0"),
        title="nginx's workers were replaced",
        text="Its configuration was reloaded, or it was restarted",
    ),
    # All workers younger than 10 s at once is a deploy, not the replacing of one of them.
    Mark(
        name="Restarts",
        colour="purple",
        expr=f"1000 * min by (instance) ({STARTED})"
        f" and max by (instance) ({STARTED}) - min by (instance) ({STARTED}) < 10",
        title="gunicorn started all its workers",
        text="{{instance}}",
        at_value=True,
    ),
    Mark(
        name="Worker failures",
        colour=colours.WAITED,
        expr=onset('instance_reason:gunicorn_worker_exits:increase1m{reason!="exit"}%s > 0'),
        title="A worker ended: {{reason}}",
        text="{{instance}}",
        switch=False,
    ),
)


def annotation(mark: Mark) -> dict[str, Any]:
    """The mark in Grafana's JSON."""
    when = {"useValueForTime": "on"} if mark.at_value else {}
    return {
        "name": mark.name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": not mark.switch,
        "iconColor": mark.colour,
        "target": {"refId": "Anno", "expr": mark.expr, "interval": "5s"},
        "titleFormat": mark.title,
        "textFormat": mark.text,
    } | when
