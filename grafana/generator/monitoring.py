"""Monitoring of the monitoring: can the other dashboards be trusted?"""

from typing import Any

from generator.dashboard import dashboard, line
from generator.mappings import TARGET_STATES
from generator.panels import stat, states, timeseries
from generator.signals import monitoring as signals


def monitoring() -> dict[str, Any]:
    """The dashboard with the uid `monitoring`."""
    return dashboard(
        "monitoring",
        "Meta-monitoring",
        "Scrapes, exporters, rules and alert delivery: can the other dashboards be trusted?",
        variables=[],
        rows={
            "": [
                line(
                    4,
                    stat(signals.TARGETS_DOWN),
                    stat(signals.UNACCOUNTED_NOW),
                    stat(signals.BACKLOG_NOW),
                    stat(signals.MALFORMED_NOW),
                    stat(signals.RULE_FAILURES),
                    stat(signals.UNDELIVERED),
                ),
            ],
            "Scrapes": [
                line(
                    9,
                    states(signals.TARGETS_BY_INSTANCE, TARGET_STATES),
                    timeseries(signals.SCRAPE_TIME),
                    timeseries(signals.SAMPLES),
                    widths=(10, 7, 7),
                ),
            ],
            "Conservation": [
                line(
                    8,
                    timeseries(signals.ACCOUNTS, kind="stack"),
                    timeseries(signals.ORIGIN),
                    timeseries(signals.UNACCOUNTED),
                ),
            ],
            "Exporters": [
                line(
                    7,
                    timeseries(signals.LINES),
                    timeseries(signals.BACKLOG),
                    timeseries(signals.MEMORY),
                ),
            ],
            "Prometheus and Alertmanager": [
                line(
                    7,
                    timeseries(signals.RULE_TIME),
                    timeseries(signals.STORED),
                    timeseries(signals.DISK),
                    timeseries(signals.NOTIFICATIONS),
                ),
            ],
        },
    )
