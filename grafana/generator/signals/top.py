"""The queries of `./stack top` besides the table of routes, over the window its user chooses.

The dashboards read the same figures from recording rules, which have a fixed window. A test
compares the two.
"""

from generator.signals.routes import failed, hits, lookups, p95, requests


def request_rate(window: str) -> str:
    """PromQL for requests per second; 0 where the exporter is up and has counted none."""
    return f'sum({requests(window)}) or 0 * sum(up{{job="nginx-access-exporter"}} == 1)'


def overall_error_ratio(window: str) -> str:
    """PromQL for the share of all requests that failed."""
    return f"clamp_max(sum({failed(window)}) / (sum({requests(window)}) > 0), 1)"


def overall_hit_ratio(window: str) -> str:
    """PromQL for the share of all cacheable requests answered from the cache."""
    return f"sum({hits(window)}) / (sum({lookups(window)}) > 0)"


def slowest_route(window: str) -> str:
    """PromQL for the highest 95th percentile of latency, with the route that has it."""
    return f"topk(1, {p95('', window)})"


def utilisation(window: str) -> str:
    """PromQL for the share of the threads' time that was busy, by replica of flask-app."""
    return (
        f"clamp_max(sum by (instance) (rate(gunicorn_worker_busy_seconds_total[{window}]))"
        " / sum by (instance) (gunicorn_workers_configured * gunicorn_worker_threads), 1)"
    )


def worker_utilisation(window: str) -> str:
    """PromQL for the share of its threads' time that a worker was busy."""
    return (
        "clamp_max(sum by (instance, worker) (rate(gunicorn_worker_busy_seconds_total"
        f"[{window}]) and gunicorn_worker_start_time_seconds)"
        " / on (instance) group_left () sum by (instance) (gunicorn_worker_threads), 1)"
    )


def worker_requests(window: str) -> str:
    """PromQL for the requests per second that a worker answered."""
    return f"rate(gunicorn_worker_requests_total[{window}]) and gunicorn_worker_start_time_seconds"


WORKER_AGE = "time() - gunicorn_worker_start_time_seconds"
WORKER_THREADS = "gunicorn_worker_threads"
BACKLOG_CAPACITY = "gunicorn_listen_backlog_limit"
