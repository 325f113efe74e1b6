"""What `./stack top` shows, read from Prometheus: everything as of one moment.

The queries are those of the dashboards (grafana/generator/signals).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import sys
from collections.abc import Callable, Iterable
from typing import Any

from local.settings import ROOT
from local.top.prometheus import Labels, Prometheus

sys.path.insert(0, str(ROOT / "grafana"))

from generator.signals import RATE, Query, cache, monitoring, top, traffic, workers
from generator.signals.routes import COLUMNS, P95_LIMIT, Column

# Seconds that the history covers, by window; it has POINTS values.
HISTORY = {"1m": 15 * 60, "5m": 3600, "1h": 6 * 3600}
POINTS = 30
# Seconds that a snapshot looks back. By then, everything scraped is stored, so all queries of a
# snapshot, and the same queries later, get the same answers.
LAG = 1.0
# Not routes of the application: they come last, however they are sorted.
LAST_ROUTES = ("unmatched", "none", "overflow")

Samples = list[tuple[Labels, float]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number and the limit it is compared with; None where there is none."""

    value: float | None
    limit: float | None = None
    low_is_bad: bool = False

    @property
    def bad(self) -> bool:
        """Whether it is beyond its limit, as the dashboards colour it."""
        if self.value is None or self.limit is None:
            return False
        return self.value < self.limit if self.low_is_bad else self.value >= self.limit


@dataclasses.dataclass(frozen=True)
class Route:
    """A row of the routes' table; `cells` are by the keys of COLUMNS."""

    name: str
    cells: dict[str, Figure]


@dataclasses.dataclass(frozen=True)
class Worker:
    """A gunicorn worker; times in seconds, `busy` a share of its threads' time."""

    instance: str
    worker: str
    busy: float | None
    in_flight: float | None
    threads: float | None
    stuck: bool
    requests_per_second: float | None
    memory_bytes: float | None
    age_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Backlog:
    """Connections of a listener that no worker has accepted, and how many may wait."""

    instance: str
    connections: Figure
    capacity: float | None


@dataclasses.dataclass(frozen=True)
class Alert:
    """An alert that fires or is pending; `since` is a Unix time."""

    name: str
    state: str
    since: float
    labels: Labels


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything as of `time` (Unix seconds), rates over `window`."""

    time: float
    window: str
    headline: dict[str, Figure]  # by the keys of HEADLINE
    slowest_route: str
    routes: list[Route]
    workers: list[Worker]
    queue: dict[str, Figure]  # p50, p95 and p99 of the time in the queue, in seconds
    backlog: list[Backlog]
    alerts: list[Alert]
    targets_down: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **dataclasses.asdict(self),
            "headline": {name: _described(figure) for name, figure in self.headline.items()},
            "routes": [
                {"route": route.name, **{key: cell.value for key, cell in route.cells.items()}}
                for route in self.routes
            ],
            "queue": {f"{level}_seconds": figure.value for level, figure in self.queue.items()},
            "backlog": [
                {
                    "instance": each.instance,
                    "connections": each.connections.value,
                    "capacity": each.capacity,
                }
                for each in self.backlog
            ],
        }


@dataclasses.dataclass(frozen=True)
class _Headline:
    """A number of the top line: PromQL from the window, and the limit that the dashboards read."""

    expr: Callable[[str], str]
    limit: Query | None = None
    low_is_bad: bool = False


HEADLINE = {
    "requests_per_second": _Headline(top.request_rate),
    "error_ratio": _Headline(top.overall_error_ratio, traffic.ERROR_RATIO.limit),
    "cache_hit_ratio": _Headline(
        top.overall_hit_ratio, cache.HIT_RATIO.for_all_routes().limit, low_is_bad=True
    ),
    "p95_seconds": _Headline(top.slowest_route, P95_LIMIT),
    "worker_utilisation": _Headline(
        lambda window: f"max({top.utilisation(window)})", workers.UTILISATION.limit
    ),
    "alerts_firing": _Headline(
        lambda _: monitoring.FIRING.queries[0].expr, monitoring.FIRING.limit
    ),
}


def filled(expression: str, window: str) -> str:
    """An expression of the dashboards with values in place of Grafana's variables."""
    for variable, value in ((RATE, window), ("$route", ".*"), ("$instance", ".*")):
        expression = expression.replace(variable, value)
    return expression


def expressions(window: str) -> dict[str, str]:
    """Every query of a snapshot by its name."""
    named = {f"headline {key}": each.expr(window) for key, each in HEADLINE.items()}
    named |= {f"route {column.key}": column.expr(window) for column in COLUMNS}
    limits = [each.limit for each in HEADLINE.values()]
    limits += [column.limit for column in COLUMNS]
    limits += [workers.QUEUE.limit, workers.BACKLOG.limit]
    named |= {f"limit {limit.expr}": limit.expr for limit in limits if limit}
    named |= {f"queue {query.legend}": query.expr for query in _quantiles()}
    named |= {
        "worker busy": top.worker_utilisation(window),
        "worker in flight": workers.IN_FLIGHT,
        "worker state": workers.BUSY_WORKERS.queries[0].expr,
        "worker requests": top.worker_requests(window),
        "worker memory": workers.MEMORY.queries[0].expr,
        "worker age": top.WORKER_AGE,
        "threads": top.WORKER_THREADS,
        "backlog": workers.BACKLOG.queries[0].expr,
        "backlog capacity": top.BACKLOG_CAPACITY,
        "alerts": monitoring.ALERTS.queries[0].expr,
        "down": "up == 0",
    }
    return {name: filled(expression, window) for name, expression in named.items()}


def take(prometheus: Prometheus, window: str, now: float) -> Snapshot:
    """Ask for everything as of LAG before `now` (Unix seconds).

    Raises:
        PrometheusError: it does not answer.
    """
    asked, time = expressions(window), now - LAG
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda expression: prometheus.instant(expression, time), asked.values())
        found = dict(zip(asked, answers, strict=True))
    slowest = found["headline p95_seconds"]
    slowest_route = slowest[0][0].get("route", "") if slowest else ""
    return Snapshot(
        time=time,
        window=window,
        headline={
            key: Figure(
                _only(found[f"headline {key}"]),
                _limit(found, each.limit, slowest_route if key == "p95_seconds" else ""),
                each.low_is_bad,
            )
            for key, each in HEADLINE.items()
        },
        slowest_route=slowest_route,
        routes=_routes(found),
        workers=_workers(found),
        queue={
            query.legend: Figure(
                _only(found[f"queue {query.legend}"]),
                _limit(found, workers.QUEUE.limit) if query.legend == "p95" else None,
            )
            for query in _quantiles()
        },
        backlog=_backlog(found),
        alerts=_alerts(found["alerts"], time),
        targets_down=sorted({labels.get("job", "") for labels, _ in found["down"]}),
    )


def history(prometheus: Prometheus, window: str, time: float) -> dict[str, list[float | None]]:
    """The course of each number of the top line: POINTS values, None where there was none.

    Raises:
        PrometheusError: it does not answer.
    """
    step = HISTORY[window] / POINTS
    end = time // step * step  # the same moments each time, so that a value does not change
    start = end - HISTORY[window] + step

    def course(each: _Headline) -> list[float | None]:
        values: list[float | None] = [None] * POINTS
        for series in prometheus.range(filled(each.expr(window), window), start, end, step):
            for moment, value in series:
                values[round((moment - start) / step)] = value
        return values

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(HEADLINE, pool.map(course, HEADLINE.values()), strict=True))


def ordered(routes: Iterable[Route], key: str, *, reverse: bool) -> list[Route]:
    """The routes by a column ("route" or a key of COLUMNS): names from a, numbers from the highest.

    Args:
        routes: in any order.
        key: the column.
        reverse: reverse the order; rows without a number, and rows that are not routes, stay last.
    """
    by_name = sorted(routes, key=lambda route: route.name)
    if key == "route":
        by_name.sort(key=lambda route: route.name, reverse=reverse)
    else:
        by_name.sort(key=lambda route: route.cells[key].value or 0.0, reverse=not reverse)
        by_name.sort(key=lambda route: route.cells[key].value is None)
    return sorted(by_name, key=lambda route: route.name in LAST_ROUTES)


def _routes(found: dict[str, Samples]) -> list[Route]:
    names = {
        labels.get("route", "") for column in COLUMNS for labels, _ in found[f"route {column.key}"]
    }
    values = {
        column.key: {
            labels.get("route", ""): value for labels, value in found[f"route {column.key}"]
        }
        for column in COLUMNS
    }

    def cell(column: Column, name: str) -> Figure:
        limit = _limit(found, column.limit, name)
        return Figure(values[column.key].get(name), limit, column.low_is_bad)

    return [
        Route(name, {column.key: cell(column, name) for column in COLUMNS})
        for name in sorted(names)
    ]


def _workers(found: dict[str, Samples]) -> list[Worker]:
    def by_worker(name: str) -> dict[tuple[str, str], float]:
        return {(labels["instance"], labels["worker"]): value for labels, value in found[name]}

    threads = {labels["instance"]: value for labels, value in found["threads"]}
    busy, in_flight, state, requests, memory, age = (
        by_worker(f"worker {name}")
        for name in ("busy", "in flight", "state", "requests", "memory", "age")
    )
    return [
        Worker(
            instance=instance,
            worker=worker,
            busy=busy.get((instance, worker)),
            in_flight=in_flight.get((instance, worker)),
            threads=threads.get(instance),
            stuck=state.get((instance, worker), 0) >= workers.STUCK,
            requests_per_second=requests.get((instance, worker)),
            memory_bytes=memory.get((instance, worker)),
            age_seconds=age[instance, worker],
        )
        # Only a worker that is alive has an age.
        for instance, worker in sorted(age, key=lambda name: (name[0], len(name[1]), name[1]))
    ]


def _backlog(found: dict[str, Samples]) -> list[Backlog]:
    capacity = {labels["instance"]: value for labels, value in found["backlog capacity"]}
    limit = _limit(found, workers.BACKLOG.limit)
    return [
        Backlog(labels["instance"], Figure(value, limit), capacity.get(labels["instance"]))
        for labels, value in found["backlog"]
    ]


def _alerts(samples: Samples, time: float) -> list[Alert]:
    """Firing before pending, then the oldest first."""
    hidden = ("__name__", "alertname", "alertstate", "severity", "job")
    alerts = [
        Alert(
            name=labels.get("alertname", ""),
            state=labels.get("alertstate", ""),
            since=time - age,
            labels={name: value for name, value in labels.items() if name not in hidden},
        )
        for labels, age in samples
    ]
    return sorted(alerts, key=lambda alert: (alert.state != "firing", alert.since, alert.name))


def _limit(found: dict[str, Samples], limit: Query | None, route: str = "") -> float | None:
    """The limit's value for a route: its own, else the general one."""
    if limit is None:
        return None
    values = {labels.get("route", ""): value for labels, value in found[f"limit {limit.expr}"]}
    return values.get(route, values.get(""))


def _quantiles() -> list[Query]:
    return [query for query in workers.QUEUE.queries if not query.threshold]


def _only(samples: Samples) -> float | None:
    return samples[0][1] if samples else None


def _described(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "limit": figure.limit, "bad": figure.bad}
