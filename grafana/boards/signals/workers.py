"""Whether gunicorn's workers keep up."""

from boards import colours
from boards.signals import INSTANCE, Query, Signal, limit, quantiles

IN_FLIGHT = f"gunicorn_worker_requests_in_flight{{{INSTANCE}}}"
FINISHED = f"gunicorn_worker_requests_total{{{INSTANCE}}}"

# Added to the number of requests in flight of a worker that finished none for a minute: see value mappings.
STUCK = 1000

UTILISATION = Signal(
    title="Worker utilisation",
    description=(
        "Share of the workers' threads that were busy over the last minute, of the fullest "
        "replica. Above the threshold (red) requests begin to queue: see *Queue time*, then add "
        "workers or threads, or find what holds them."
    ),
    unit="percentunit",
    queries=(
        Query(
            f"max(instance:gunicorn_worker_utilisation:ratio_rate1m{{{INSTANCE}}}) or vector(NaN)",
            "busy",
        ),
        limit("threshold:worker_utilisation"),
    ),
)

UTILISATION_BY_INSTANCE = Signal(
    title="Worker utilisation",
    description=(
        "Share of the workers' threads that were busy, over 1 minute, by replica. Under the line "
        "is room; at 100 % every further request waits. One replica far above the others: is one "
        "of its workers stuck?"
    ),
    unit="percentunit",
    queries=(
        Query(f"instance:gunicorn_worker_utilisation:ratio_rate1m{{{INSTANCE}}}", "{{instance}}"),
        limit("threshold:worker_utilisation"),
    ),
)

BUSY_WORKERS = Signal(
    title="Requests in flight by worker",
    description=(
        "What each worker is doing. Grey is idle, blue is working on that many requests. Red is "
        "stuck: it holds requests and has finished none for a minute; gunicorn kills it after its "
        "timeout. Take a stack dump before it does (docs/runbooks.md)."
    ),
    unit="short",
    queries=(
        Query(
            f"{IN_FLIGHT} + {STUCK} * (({IN_FLIGHT} > bool 0) * (increase({FINISHED}[1m]) == bool 0))",
            "worker {{worker}} · {{instance}}",
        ),
    ),
)

QUEUE = Signal(
    title="Queue time",
    description=(
        "From nginx passing a request on to a worker starting on it. Normal is a millisecond; it "
        "rises before anything else when the workers are full, long before clients see errors."
    ),
    unit="s",
    queries=(
        *quantiles("gunicorn_request_queue_duration_seconds", INSTANCE),
        limit("threshold:request_queue_p95_seconds", "alert: p95 above"),
    ),
    empty="No request reached a worker in this time range",
    colours=colours.PERCENTILES,
)

BACKLOG = Signal(
    title="Listen backlog",
    description=(
        "Connections that the kernel holds because no worker has accepted them, and how many it "
        "can hold; the scale is logarithmic. Normal is 0. At the limit new connections are "
        "refused, and nginx answers 502."
    ),
    unit="short",
    queries=(
        Query(f"gunicorn_listen_backlog{{{INSTANCE}}}", "{{instance}}"),
        Query(f"max(gunicorn_listen_backlog_limit{{{INSTANCE}}})", "limit"),
        limit(
            f"threshold:listen_backlog_ratio * on () max(gunicorn_listen_backlog_limit{{{INSTANCE}}})"
        ),
    ),
    colours={"limit": colours.IDLE},
)

MEMORY = Signal(
    title="Memory by worker",
    description=(
        "Resident memory of each worker. Level lines are normal, with a drop where a worker was "
        "replaced. A line that only climbs is a leak: GUNICORN_MAX_REQUESTS bounds it until it is "
        "found."
    ),
    unit="bytes",
    queries=(
        Query(
            f"gunicorn_worker_resident_memory_bytes{{{INSTANCE}}}",
            "worker {{worker}} · {{instance}}",
        ),
    ),
)

EXITS = Signal(
    title="Worker exits",
    description=(
        "Workers that ended, by reason, in the minute before. `exit` is planned (reload, max "
        "requests). `timeout` is a worker gunicorn killed because it was stuck, `signal` one that "
        "crashed or ran out of memory: read its log."
    ),
    unit="short",
    queries=(
        Query(
            f"sum by (reason) (instance_reason:gunicorn_worker_exits:increase1m{{{INSTANCE}}}) > 0",
            "{{reason}}",
        ),
    ),
    empty="No worker ended in this time range",
    colours=colours.EXITS,
)
