"""Whether what the other dashboards show can be believed."""

from boards.signals import Query, Signal

FIRING = Signal(
    title="Firing alerts",
    description=(
        "How many alerts fire now. Normal is 0. The list below names them, since when, and where "
        "to look; each alert has a runbook."
    ),
    unit="short",
    queries=(
        Query('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"),
        Query("vector(1)", "limit", threshold=True),
    ),
)

ALERTS = Signal(
    title="Active alerts",
    description=(
        "Alerts that fire, and those about to (pending: the condition holds, not yet for long "
        "enough). Click an endpoint for its dashboard; what to do stands in the alert's runbook, "
        "linked from Prometheus and Alertmanager."
    ),
    unit="s",
    queries=(
        Query(
            "(time() - ALERTS_FOR_STATE) * ignoring (alertstate) group_right () ALERTS",
            "{{alertname}}",
        ),
    ),
    empty="No alert is active",
)

TARGETS = Signal(
    title="Targets",
    description=(
        "Whether Prometheus can scrape each service; of several replicas, whether all can be "
        "scraped. While one is down, panels that need it show gaps, not zeros. *Monitoring of the "
        "monitoring* has the reasons."
    ),
    unit="short",
    queries=(Query("avg by (job) (up)", "{{job}}"),),
)
