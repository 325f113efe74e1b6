"""Whether the other dashboards can be trusted."""

from generator import colours
from generator.signals import HIT, RATE, Query, Signal, limit, rate, threshold
from generator.signals.traffic import REQUESTS
from generator.signals.upstream import ATTEMPTS

NOT_HIT = HIT.replace("=~", "!~")

# Watchdog always fires, so that its absence is noticed; its severity is info.
ACTIVE = 'severity!="info"'
ACTIVE_FOR = "(time() - ALERTS_FOR_STATE)"

FIRING = Signal(
    title="Firing alerts",
    description=(
        "How many alerts fire now. Normal is 0. The list below shows which ones and for how long, "
        "and links to the runbook of each."
    ),
    unit="short",
    queries=(
        Query(f'count(ALERTS{{alertstate="firing", {ACTIVE}}}) or vector(0)', "firing"),
        limit("vector(1)"),
    ),
)

ALERTS = Signal(
    title="Active alerts",
    description=(
        "Alerts that are firing or pending. Pending means that the condition holds, but not yet "
        "for long enough. Click a route for its dashboard, or an alert for its description and "
        "runbook."
    ),
    unit="s",
    queries=(
        Query(
            f"{ACTIVE_FOR} * ignoring (alertstate) group_right () ALERTS{{{ACTIVE}}}",
            "{{alertname}}",
        ),
    ),
    empty="No alert is active",
)

BURN = "slo:budget_burn:ratio_rate1h"

BUDGET = Signal(
    title="Budget burn",
    description=(
        "How fast the error budget of the service level objectives is spent, over 1 hour: 1 is as "
        "fast as allowed, 0 is best. At the line, the budget for 30 days would last 2 days, and "
        "the alert pages."
    ),
    unit="short",
    queries=(
        Query(BURN, "{{slo}}"),
        limit(threshold("slo_burn_rate", 'window="1h"'), "pages above", beside=BURN),
    ),
    empty="No requests in the hour before",
    colours={"availability": colours.NEUTRAL, "latency": "purple"},
)

TARGETS = Signal(
    title="Services",
    description=(
        "Whether Prometheus can scrape each service; “partly” means that it can scrape some of the "
        "replicas. While one is down, the panels that need it show gaps, not zeros. The dashboard "
        "*Meta-monitoring* shows more."
    ),
    unit="short",
    queries=(Query("avg by (job) (up)", "{{job}}"),),
)

TARGETS_DOWN = Signal(
    title="Targets down",
    description=(
        "How many targets Prometheus could not scrape at the last attempt. Normal is 0; during a "
        "deploy a replica may be missing for a scrape or two. *Targets* shows which."
    ),
    unit="short",
    queries=(Query("count(up) - sum(up)", "down"), limit("vector(1)")),
)

UNACCOUNTED_RATIO = "job:nginx_requests_unaccounted:ratio_rate5m"

UNACCOUNTED_NOW = Signal(
    title="Unaccounted",
    description=(
        "Share of the requests that nginx counted (stub_status) and the access exporter did not, "
        "over 5 minutes. Normal is about 0; red is above the alert's threshold. The missing "
        "requests are in no figure by route. Compare *Log backlog* and *Malformed*."
    ),
    unit="percentunit",
    queries=(
        Query(f"max({UNACCOUNTED_RATIO}) or vector(NaN)", "unaccounted"),
        limit(threshold("requests_unaccounted_ratio")),
    ),
    empty="No traffic",
)

MALFORMED_NOW = Signal(
    title="Malformed",
    description=(
        "Share of the access log's lines that the exporter could not read, over 5 minutes. Normal "
        "is 0: another value means that nginx's log format is not the one the exporter expects. "
        "The exporter's log shows the lines."
    ),
    unit="percentunit",
    queries=(
        Query(
            "sum(rate(nginx_access_exporter_malformed_lines_total[5m]))"
            " / (sum(rate(nginx_access_exporter_lines_total[5m])) > 0) or vector(NaN)",
            "malformed",
        ),
        limit(threshold("access_log_malformed_ratio")),
    ),
    empty="No traffic",
)

BACKLOG_NOW = Signal(
    title="Log backlog",
    description=(
        "Bytes that nginx has logged and the exporter has not read yet. Normal is close to 0, "
        "since each scrape reads the log to its end; red is above the alert's threshold. A backlog "
        "that grows means that the exporter is stopped or too slow, and that every figure by route "
        "is late."
    ),
    unit="bytes",
    queries=(
        Query("sum(nginx_access_exporter_backlog_bytes)", "backlog"),
        limit(threshold("access_log_backlog_bytes")),
    ),
)

RULE_FAILURES = Signal(
    title="Rule failures",
    description=(
        "Evaluations of recording and alert rules that failed in the last 5 minutes. Normal is 0: "
        "a failing rule records nothing and alerts nobody. Prometheus' page *Rules* shows the "
        "error."
    ),
    unit="short",
    queries=(
        Query("ceil(sum(increase(prometheus_rule_evaluation_failures_total[5m])))", "failures"),
        limit("vector(1)"),
    ),
)

UNDELIVERED = Signal(
    title="Undelivered",
    description=(
        "Alerts that Prometheus could not hand to Alertmanager, and messages that Alertmanager "
        "could not send, in the last 5 minutes. Normal is 0. Alertmanager's log has the reason: "
        "usually a wrong address or secret."
    ),
    unit="short",
    queries=(
        Query(
            "ceil(sum(increase(prometheus_notifications_errors_total[5m]))"
            " + (sum(increase(alertmanager_notifications_failed_total[5m])) or vector(0)))",
            "undelivered",
        ),
        limit("vector(1)"),
    ),
)

TARGETS_BY_INSTANCE = Signal(
    title="Targets",
    description=(
        "Whether each target could be scraped. Gaps are times without the target, such as a "
        "replica before it was added. Grafana is scraped only where it runs."
    ),
    unit="short",
    # Only flask-app has replicas, so only its targets need their addresses.
    queries=(
        Query('up{job!="flask-app"}', "{{job}}"),
        Query('up{job="flask-app"}', "{{job}} · {{instance}}"),
    ),
)

SCRAPE_TIME = Signal(
    title="Scrape time",
    description=(
        "How long each target took to answer Prometheus. Normal is well under 0.1 s; at 4 s a "
        "scrape fails. A target that gets slower is short of CPU, or exports ever more series."
    ),
    unit="s",
    queries=(Query("max by (job) (scrape_duration_seconds)", "{{job}}"),),
)

SAMPLES = Signal(
    title="Samples per scrape",
    description=(
        "How many values each target exports. Steady lines are normal; each new route adds values "
        "to nginx-access-exporter and flask-app. A line that only grows means that a label has "
        "unbounded values."
    ),
    unit="short",
    queries=(Query("sum by (job) (scrape_samples_scraped)", "{{job}}"),),
)

ACCOUNTS = Signal(
    title="Where nginx's answers come from",
    description=(
        "Requests in the access log by who answered them, stacked, against nginx's own counter "
        "(stub_status), which also counts health checks and scrapes. Normally the line is a little "
        "above the areas; a wide gap under traffic means that requests were not logged."
    ),
    unit="reqps",
    queries=(
        Query(rate(REQUESTS, HIT), "the cache"),
        Query(rate(REQUESTS, f'{NOT_HIT}, route!="none"'), "Flask"),
        Query(rate(REQUESTS, f'{NOT_HIT}, route="none"'), "nginx itself"),
        Query(rate("nginx_http_requests_total"), "nginx's counter", total=True),
    ),
    colours={
        "the cache": colours.GOOD,
        "Flask": colours.WAITED,
        "nginx itself": colours.IDLE,
        "nginx's counter": colours.NEUTRAL,
    },
)

UNACCOUNTED = Signal(
    title="Unaccounted requests",
    description=(
        "Share of the requests that nginx counted and the access exporter did not, over 5 minutes. "
        "Above the line the alert fires: requests get lost between nginx and the metrics, for "
        "example because the log volume is full."
    ),
    unit="percentunit",
    queries=(
        Query(UNACCOUNTED_RATIO, "unaccounted"),
        limit(threshold("requests_unaccounted_ratio"), beside=UNACCOUNTED_RATIO),
    ),
    empty="No traffic in this time range",
    colours={"unaccounted": colours.NEUTRAL},
)

ORIGIN = Signal(
    title="Passed on by nginx, counted by Flask",
    description=(
        "Attempts by nginx that Flask answered, against the requests that Flask counted. Flask "
        "counts more, because nginx does not log the cache's background refreshes; the difference "
        "never exceeds the stale answers. If Flask's line is below nginx's and gunicorn shed none, "
        "Flask has not counted some requests."
    ),
    unit="reqps",
    queries=(
        Query(rate(ATTEMPTS, 'status!~"none|502|504"'), "nginx passed on"),
        Query(rate("flask_http_request_total"), "Flask counted"),
        Query(f"{rate('gunicorn_requests_shed_total')} > 0", "gunicorn shed"),
        Query(rate(REQUESTS, 'cache=~"STALE|UPDATING"'), "answered stale"),
    ),
    empty="No request went to Flask in this time range",
    colours={
        "nginx passed on": colours.WAITED,
        "Flask counted": colours.NEUTRAL,
        "answered stale": "semi-dark-green",
        "gunicorn shed": colours.BAD,
    },
)

LINES = Signal(
    title="Access log lines",
    description=(
        "Lines per second that the exporter read, and lines that it could not understand. Normally "
        "the first follows the request rate, and the second is 0."
    ),
    unit="suffix:lines/s",
    queries=(
        Query(rate("nginx_access_exporter_lines_total"), "read"),
        Query(rate("nginx_access_exporter_malformed_lines_total"), "malformed"),
    ),
    colours={"read": colours.NEUTRAL, "malformed": colours.BAD},
)

BACKLOG = Signal(
    title="Log backlog",
    description=(
        "Bytes that nginx has logged and the exporter has not read yet, at each scrape. A few "
        "kilobytes under load are normal, since nginx writes in blocks. The alert fires when it "
        "stays above the line."
    ),
    unit="bytes",
    queries=(
        Query("sum(nginx_access_exporter_backlog_bytes)", "backlog"),
        limit(threshold("access_log_backlog_bytes")),
    ),
    colours={"backlog": colours.NEUTRAL},
)

MEMORY = Signal(
    title="Memory",
    description=(
        "Resident memory of the processes that do the monitoring. Level lines are normal; "
        "Prometheus' memory grows with the number of series and shrinks every two hours."
    ),
    unit="bytes",
    queries=(Query('max by (job) (process_resident_memory_bytes{job!="flask-app"})', "{{job}}"),),
)

RULE_TIME = Signal(
    title="Rule evaluation time",
    description=(
        "How long Prometheus takes to evaluate its rule groups. Most are evaluated every 5 s: if "
        "the slowest comes near the line, it falls behind and its recorded series have gaps. "
        "Prometheus' page *Rules* shows the time of each."
    ),
    unit="s",
    queries=(
        Query("max(prometheus_rule_group_last_duration_seconds)", "slowest group"),
        Query("sum(prometheus_rule_group_last_duration_seconds)", "all groups"),
        limit("min(prometheus_rule_group_interval_seconds)", "interval"),
    ),
    colours={"slowest group": colours.NEUTRAL, "all groups": "light-blue"},
)

STORED = Signal(
    title="Series in memory",
    description=(
        "Time series that Prometheus keeps in memory. Deploys and new routes add steps; a steady "
        "climb means that a label has unbounded values."
    ),
    unit="short",
    queries=(Query("sum(prometheus_tsdb_head_series)", "series"),),
    colours={"series": colours.NEUTRAL},
)

# What the limit counts: blocks, and data that is not in a block yet.
STORAGE = "storage_blocks|wal_storage_size|head_chunks_storage_size"

DISK = Signal(
    title="Prometheus' disk space",
    description=(
        "Size of Prometheus' data on disk, and the limit at which it deletes the oldest. It rises "
        "at first and then stays level. PROMETHEUS_RETENTION_SIZE sets the limit."
    ),
    unit="bytes",
    queries=(
        Query(f'sum({{__name__=~"prometheus_tsdb_({STORAGE})_bytes"}})', "used"),
        limit("max(prometheus_tsdb_retention_limit_bytes) > 0", "deletes above"),
    ),
    colours={"used": colours.NEUTRAL},
)

SENT = f"sum by (integration) (rate(alertmanager_notifications_total[{RATE}]))"
FAILED = rate("alertmanager_notifications_failed_total")

NOTIFICATIONS = Signal(
    title="Notifications",
    description=(
        "Messages per minute that Alertmanager sent, by kind of receiver, and messages that "
        "failed. None are sent while nothing fires, or while no receiver is set up "
        "(docs/alerts.md)."
    ),
    unit="suffix:messages/min",
    queries=(
        Query(f"60 * {SENT} > 0", "{{integration}}"),
        Query(f"60 * {FAILED} > 0", "failed"),
    ),
    empty="No notification was sent in this time range",
    colours={"failed": colours.BAD},
)
