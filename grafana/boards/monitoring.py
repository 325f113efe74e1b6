"""Monitoring of the monitoring: can what the other dashboards show be believed?"""

from typing import Any

from boards.dashboard import dashboard, line
from boards.mappings import TARGET_STATES
from boards.panels import states, tile, timeseries
from boards.signals import monitoring as signals


def monitoring() -> dict[str, Any]:
    """The dashboard with the uid `monitoring`."""
    return dashboard(
        "monitoring",
        "Meta-monitoring",
        "Scrapes, exporters, rules and alert delivery: can the other dashboards be believed?",
        variables=[],
        rows={
            "": [
                line(
                    4,
                    tile(signals.TARGETS_DOWN),
                    tile(signals.UNACCOUNTED_NOW),
                    tile(signals.BACKLOG_NOW),
                    tile(signals.MALFORMED_NOW),
                    tile(signals.RULE_FAILURES),
                    tile(signals.UNDELIVERED),
                ),
            ],
            "Scrapes": [
                line(
                    8,
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
