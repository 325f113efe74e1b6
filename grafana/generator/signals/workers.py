"""Whether gunicorn's workers keep up."""

from generator import colours
from generator.signals import (
    INSTANCE,
    RATE,
    Query,
    Signal,
    limit,
    observed,
    quantiles,
    threshold,
)

SELECTED = f"{{{INSTANCE}}}"
IN_FLIGHT = f"gunicorn_worker_requests_in_flight{SELECTED}"

# Added to the load of a worker that held requests for half a minute and answered none meanwhile.
STUCK = 1000

UTILISATION = Signal(
    title="Workers busy",
    description=(
        "Share of the time that the threads of the busiest replica worked on requests, over 5 "
        "minutes; the alert compares the same number. Above the threshold (red) requests begin to "
        "queue: see *Queue time*. Then add workers or threads, or find the slow route."
    ),
    unit="percentunit",
    queries=(
        Query(
            # Rounded: the health checks of an idle stack would show as 0.000392%.
            f"round(max(instance:gunicorn_worker_utilisation:ratio_rate5m{SELECTED}), 0.0001)"
            " or vector(NaN)",
            "busy",
        ),
        limit(threshold("worker_utilisation")),
    ),
)

UTILISATION_BY_INSTANCE = Signal(
    title="Worker utilisation",
    description=(
        "Share of the workers' threads that were busy, over 1 minute, by replica (the alert uses 5 "
        "minutes). Below the line there is room for more requests; at 100 % every further request "
        "waits. If one replica is far above the others, check whether one of its workers is stuck."
    ),
    unit="percentunit",
    queries=(
        Query(f"instance:gunicorn_worker_utilisation:ratio_rate1m{SELECTED}", "{{instance}}"),
        limit(threshold("worker_utilisation")),
    ),
)

BUSY_WORKERS = Signal(
    title="In flight by worker",
    description=(
        "What each worker's threads are doing: all idle (grey), some busy (blue), all busy "
        "(orange). Red means stuck: the worker holds requests and has answered none for half a "
        "minute. gunicorn does not kill a worker whose threads all hang: look at its stack "
        "(docs/runbooks.html, UpstreamSlow), then kill it."
    ),
    unit="percentunit",
    queries=(
        Query(
            f"{IN_FLIGHT} / on (instance) group_left () gunicorn_worker_threads{SELECTED}"
            f" + {STUCK} * (min_over_time({IN_FLIGHT}[30s]) > bool 0)"
            f" * (increase(gunicorn_worker_requests_total{SELECTED}[30s]) == bool 0)"
            " and gunicorn_worker_start_time_seconds",
            "{{worker}} · {{instance}}",
        ),
    ),
)

QUEUED = "gunicorn_request_queue_duration_seconds"

QUEUE = Signal(
    title="Queue time",
    description=(
        "Time from when nginx passes a request on until a worker starts on it. Normal is a "
        "millisecond. When the workers are full it is the first to rise, long before clients see "
        "errors."
    ),
    unit="s",
    queries=(
        *quantiles(QUEUED, INSTANCE),
        limit(
            threshold("request_queue_p95_seconds"),
            "alert: p95 above",
            beside=observed(QUEUED, INSTANCE),
        ),
    ),
    empty="No request reached a worker in this time range",
    colours=colours.PERCENTILES,
)

BACKLOG_LIMIT = f"max(gunicorn_listen_backlog_limit{SELECTED})"
# The limit would flatten a short queue, so it is drawn only above a tenth of the limit.
LONG_BACKLOG = f"max(gunicorn_listen_backlog{SELECTED}) > 0.1 * {BACKLOG_LIMIT}"

BACKLOG = Signal(
    title="Listen backlog",
    description=(
        "Connections that wait in the kernel because no worker has accepted them. Normal is 0. At "
        "the limit (GUNICORN_BACKLOG, or less where the kernel allows less) the kernel drops new "
        "connections, and nginx's attempts time out. The alert's line appears when the backlog is "
        "above a tenth of the limit."
    ),
    unit="short",
    queries=(
        Query(f"gunicorn_listen_backlog{SELECTED}", "{{instance}}"),
        limit(f"{threshold('listen_backlog_ratio')} * {BACKLOG_LIMIT}", beside=LONG_BACKLOG),
    ),
)

NOT_RUN = (
    f"sum by (route, reason) (rate(gunicorn_requests_shed_total{SELECTED}[$__rate_interval])) > 0"
)

SHED = Signal(
    title="Requests shed",
    description=(
        "Requests that a worker did not pass to the app, by route and reason. `queue_timeout`: the "
        "request waited longer than GUNICORN_QUEUE_TIMEOUT for a worker and got 503. "
        "`client_left`: its client was gone before a worker was free. Normal is none. They are not "
        "among Flask's responses."
    ),
    unit="reqps",
    queries=(
        Query(NOT_RUN, "{{reason}} {{route}}"),
        limit(threshold("requests_shed_per_second"), beside=NOT_RUN),
    ),
    empty="Every request reached the app in this time range",
)

MEMORY = Signal(
    title="Memory by worker",
    description=(
        "Resident memory of each worker. Level lines are normal, with a drop where a worker was "
        "replaced. A line that only climbs is a leak: GUNICORN_MAX_REQUESTS limits it until you "
        "find it."
    ),
    unit="bytes",
    queries=(
        Query(
            f"gunicorn_worker_resident_memory_bytes{SELECTED}",
            "{{worker}} · {{instance}}",
        ),
    ),
)

ENDED = f"instance_reason:gunicorn_worker_exits:increase1m{SELECTED}"

EXITS = Signal(
    title="Worker exits",
    description=(
        "Workers that ended, by reason, in the minute before. `exit` is planned (reload, max "
        "requests). `timeout` is a worker that gunicorn killed because it was stuck, `signal` one "
        "that crashed or ran out of memory: read its log."
    ),
    unit="short",
    queries=(Query(f"round(sum by (reason) ({ENDED})) > 0", "{{reason}}"),),
    empty="No worker ended in this time range",
    colours=colours.EXITS,
)

USED_MEMORY = "cgroup_memory_working_set_bytes / cgroup_memory_limit_bytes"

CONTAINER_MEMORY = Signal(
    title="Container memory",
    description=(
        "Memory in use, as a share of the container's memory limit; it does not include what the "
        "kernel can reclaim. At 100 % the kernel kills a process. *Memory by worker* shows which "
        "worker uses the memory. The panel is empty if no container has a limit."
    ),
    unit="percentunit",
    queries=(
        Query(USED_MEMORY, "{{job}} · {{instance}}"),
        limit(threshold("memory_limit_ratio"), beside=USED_MEMORY),
    ),
    empty="No container has a memory limit",
)

WAITED_FOR_CPU = f"rate(cgroup_cpu_throttled_seconds_total[{RATE}])"

THROTTLED = Signal(
    title="CPU throttling",
    description=(
        "Seconds per second for which the kernel stopped a container's threads because the "
        "container had used up its CPU limit, over all its threads. Normal is 0. Throttled "
        "requests wait: raise the limit, or run fewer threads. Above the line the alert fires if "
        "requests are slow, too. The panel is empty if no container has a CPU limit."
    ),
    unit="suffix:s/s",
    queries=(
        Query(WAITED_FOR_CPU, "{{job}} · {{instance}}"),
        limit(threshold("cpu_throttled_ratio"), beside=WAITED_FOR_CPU),
    ),
    empty="No container has a CPU limit",
)
