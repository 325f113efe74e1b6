"""Annotations: what happened and when, on the time axis of every panel."""

from dataclasses import dataclass
from typing import Any

from generator import colours
from generator.scope import of_chosen_stack
from generator.targets import DATASOURCE


@dataclass(frozen=True)
class Annotation:
    """One kind of event.

    Args:
        name: label of its switch above the panels.
        colour: of its annotations.
        expr: PromQL; there is an annotation where it has a positive value.
        title: heading of an annotation; `{{label}}` stands for a label's value.
        text: below the heading.
        at_value: whether the value is the time of the annotation, in Unix milliseconds.
        switch: whether there is a switch to hide these annotations.
    """

    name: str
    colour: str
    expr: str
    title: str
    text: str
    at_value: bool = False
    switch: bool = True


def onset(condition: str) -> str:
    """PromQL for the moment at which a condition begins.

    Annotations for as long as it holds would cover the panels.

    Args:
        condition: PromQL with a `%s` where an offset belongs.
    """
    return f"({condition % ''}) unless ({condition % ' offset $__interval'})"


STARTED = "gunicorn_worker_start_time_seconds"

ANNOTATIONS = (
    Annotation(
        name="Alerts",
        colour=colours.BAD,
        expr=onset('ALERTS{alertstate="firing", severity!="info"}%s'),
        title="{{alertname}} fires",
        text="{{severity}} {{route}}",
    ),
    Annotation(
        name="Reloads",
        colour=colours.NEUTRAL,
        expr=onset("changes(nginx_worker_process_id[$__rate_interval]%s) > 0"),
        title="nginx's workers were replaced",
        text="Its configuration was reloaded, or it was restarted",
    ),
    # All workers started within 10 s: a deploy or restart, not the replacement of one worker. All
    # must be there: while one is replaced, the others may have started within 10 s, too.
    Annotation(
        name="Restarts",
        colour="purple",
        expr=f"1000 * min by (instance) ({STARTED})"
        f" and max by (instance) ({STARTED}) - min by (instance) ({STARTED}) < 10"
        f" and count by (instance) ({STARTED}) >= max by (instance) (gunicorn_workers_configured)",
        title="gunicorn started all its workers",
        text="{{instance}}",
        at_value=True,
    ),
    # A version that was not running in the two minutes before: a restart is shorter.
    Annotation(
        name="Versions",
        colour="green",
        expr="group by (version) (flask_app_info)"
        " unless group by (version) (last_over_time(flask_app_info[2m] offset $__interval))",
        title="Version {{version}} of the app",
        text="It started, and did not run in the two minutes before",
    ),
    Annotation(
        name="Worker failures",
        colour=colours.WAITED,
        expr=onset('instance_reason:gunicorn_worker_exits:increase1m{reason!="exit"}%s > 0'),
        title="A worker ended: {{reason}}",
        text="{{instance}}",
        switch=False,
    ),
)


def annotation(event: Annotation) -> dict[str, Any]:
    """The annotation in Grafana's JSON."""
    when = {"useValueForTime": True} if event.at_value else {}
    return {
        "name": event.name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": not event.switch,
        "iconColor": event.colour,
        "target": {"refId": "Anno", "expr": of_chosen_stack(event.expr), "interval": "5s"},
        "titleFormat": event.title,
        "textFormat": event.text,
    } | when
