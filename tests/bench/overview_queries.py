"""How long Prometheus takes for each query of the overview: many routes, replicas and days.

python -m tests.bench.overview_queries [--routes 100] [--replicas 3] [--days 7]

Fills a Prometheus with the series that its rules and scrapes would have stored. A week takes some
ten minutes; with `--data`, an interrupted run is continued, and the next one needs no filling. Then
sends the queries that Grafana sends for panels 1,000 pixels wide, one at a time. Prints the slowest
queries: the shortest of three times, and the CPU time of the same attempt, which other work on the
machine affects less.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice, pairwise, repeat
from pathlib import Path
from typing import Any, TextIO

from local.settings import BIN, ROOT
from local.top.prometheus import Prometheus
from tests.bench.top_queries import BOUNDS, cpu_seconds, prometheus

OVERVIEW = ROOT / "grafana" / "dashboards" / "stack-overview.json"
SCRAPE = 5  # seconds between samples
BLOCK = 18 * 3600  # seconds: the blocks into which Prometheus compacts a week
RECENT = 900  # seconds: series that only instant queries read go back this far
POINTS = 1000
POINTS_OF_ANNOTATIONS = 100
ROUNDS = 3
CACHE = ("HIT", "MISS", "EXPIRED", "STALE", "UPDATING", "NONE")
STATUS = ("200", "304", "404", "500", "502")
PHASES = ("connect", "header", "response")
WORKERS = 3

# Grafana rounds the time between two points to one of these, in seconds
STEPS = (SCRAPE, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10800)
SHOWN = 8  # queries in a table
CHANGING = [f"{1 + number * 41 % 97 / 97:.6f}" for number in range(97)]

EVERY_MINUTE = {
    "route:nginx_requests:increase1m",
    "route:nginx_cache_saved_seconds:rate5m",
    "slo:budget_burn:ratio_rate1h",
}
COUNTER, GAUGE, CONSTANT = "counter", "gauge", "constant"
LES = [f'le="{bound}"' for bound in BOUNDS]

Metric = tuple[str, list[str], str]  # its name, label sets and kind


class App:
    """The label sets of an app with this many routes, a third of them cached, and replicas."""

    def __init__(self, routes: int, replicas: int) -> None:
        self.routes = [f'route="/r{number}"' for number in range(routes)]
        self.cached = self.routes[: routes // 3]
        self.instances = [f'job="flask-app",instance="f{number}"' for number in range(replicas)]
        self.workers = [
            f'{instance},worker="{slot}"'
            for instance in self.instances
            for slot in range(1, WORKERS + 1)
        ]
        self.access = 'job="nginx-access-exporter",instance="n"'
        self.by_cache = [
            f'{self.access},{route},cache="{cache}"'
            for number, route in enumerate(self.routes)
            for cache in (CACHE[:4] if number < routes // 3 else ["NONE"])
        ]


def recorded(app: App) -> Iterator[Metric]:
    """The recorded series that panels draw over the whole time."""
    statuses = [f'cache="{cache}",status="{status}"' for cache in CACHE for status in STATUS]
    yield "cache_status:nginx_requests:rate1m", statuses, GAUGE
    by_cache = [f'cache="{cache}",{le}' for cache in CACHE for le in LES]
    yield "cache_le:nginx_request_duration_seconds_bucket:rate1m", by_cache, GAUGE
    yield "cache:nginx_response_bytes:rate1m", [f'cache="{cache}"' for cache in CACHE], GAUGE
    for phase in PHASES:
        yield f"le:nginx_upstream_{phase}_duration_seconds_bucket:rate1m", LES, GAUGE
    for times in ("", "_hit", "_miss", *(f"_upstream_{phase}" for phase in PHASES)):
        for level in ("p50", "p95", "p99"):
            yield f"stack:nginx{times or '_request'}_duration_seconds:{level}_rate1m", [""], GAUGE
    attempts = [f'status="{status}"' for status in STATUS]
    yield "status:nginx_upstream_attempts:rate1m", attempts, GAUGE
    for name in (
        "stack:nginx_upstream_response_duration_seconds_count:rate1m",
        "stack:nginx_upstream_response_duration_seconds_sum:rate1m",
        "stack:nginx_cache_lookups:rate5m",
        "stack:nginx_cache_hit:ratio_rate5m",
        "stack:nginx_cache_offload:ratio_rate5m",
        "job:nginx_errors:ratio_rate5m",
    ):
        yield name, [""], GAUGE
    slos = [f'slo="{slo}"' for slo in ("availability", "latency")]
    yield "slo:budget_burn:ratio_rate1h", slos, GAUGE
    for name in ("rate1m", "increase1m"):
        yield f"route:nginx_requests:{name}", app.routes, GAUGE
    yield "route:nginx_request_duration_seconds:p95_rate5m", app.routes, GAUGE
    for name in ("lookups:rate5m", "hit:ratio_rate5m", "saved_seconds:rate5m"):
        yield f"route:nginx_cache_{name}", app.cached, GAUGE
    for name in ("count", "sum"):
        rule = f"instance:flask_http_request_duration_seconds_{name}:rate1m"
        yield rule, app.instances, GAUGE
    for window in ("1m", "5m"):
        yield f"instance:gunicorn_worker_utilisation:ratio_rate{window}", app.instances, GAUGE
    ended = [f'{each},reason="{why}"' for each in app.instances for why in ("exit", "signal")]
    yield "instance_reason:gunicorn_worker_exits:increase1m", ended, CONSTANT
    firing = f'alertname="ErrorRatioHigh",severity="page",{app.routes[0]}'
    yield "ALERTS_FOR_STATE", [firing], CONSTANT
    yield "ALERTS", [f'{firing},alertstate="firing"'], CONSTANT
    for name in (
        *("worker_utilisation", "request_queue_p95_seconds", "listen_backlog_ratio"),
        *("memory_limit_ratio", "cpu_throttled_ratio", "upstream_failure_ratio"),
        *("cache_miss_ratio", "error_ratio", "request_p95_seconds", "upstream_p95_seconds"),
    ):
        yield f"threshold:{name}", [""], CONSTANT
    yield "threshold:slo_burn_rate", ['window="1h"'], CONSTANT


def scraped(app: App) -> Iterator[Metric]:
    """The scraped series that panels draw over the whole time."""
    yield "gunicorn_request_queue_duration_seconds_count", app.instances, COUNTER
    queue = [f"{each},{le}" for each in app.instances for le in LES[::-4]]
    yield "gunicorn_request_queue_duration_seconds_bucket", queue, COUNTER
    yield "gunicorn_worker_requests_total", app.workers, COUNTER
    yield "gunicorn_worker_requests_in_flight", app.workers, GAUGE
    yield "gunicorn_worker_resident_memory_bytes", app.workers, GAUGE
    yield "gunicorn_worker_start_time_seconds", app.workers, CONSTANT
    yield "gunicorn_worker_threads", app.instances, CONSTANT
    yield "gunicorn_listen_backlog", app.instances, GAUGE
    yield "gunicorn_listen_backlog_limit", app.instances, CONSTANT
    containers = [*app.instances, app.access]
    yield "cgroup_memory_working_set_bytes", containers, GAUGE
    yield "cgroup_memory_limit_bytes", containers, CONSTANT
    yield "cgroup_cpu_throttled_seconds_total", containers, COUNTER
    nginx = ['job="nginx-exporter",instance="n"']
    for state in ("reading", "waiting", "writing"):
        yield f"nginx_connections_{state}", nginx, GAUGE
    for count in ("accepted", "handled"):
        yield f"nginx_connections_{count}", nginx, COUNTER
    processes = [f'job="nginx-proxy",pid="{number}"' for number in (7, 8)]
    yield "nginx_worker_process_id", processes, CONSTANT
    zone = [f'{app.access},zone="responses"']
    for name in ("entries", "size_bytes", "oldest_entry_age_seconds"):
        yield f"nginx_cache_{name}", zone, GAUGE
    for name in ("keys_capacity", "max_size_bytes"):
        yield f"nginx_cache_{name}", zone, CONSTANT
    yield "nginx_cache_evictions_total", zone, COUNTER
    others = ['job="prometheus",instance="p"', 'job="grafana",instance="g"']
    yield "up", [*containers, *nginx, *others], CONSTANT


def recent(app: App) -> Iterator[Metric]:
    """The series that are read only at the end, most of them by the table of routes."""
    for name in ("requests:rate5m", "errors:ratio_rate5m"):
        yield f"route:nginx_{name}", app.routes, GAUGE
    yield "route:nginx_cache_miss:ratio_rate5m", app.cached, GAUGE
    header = "nginx_upstream_header_duration_seconds"
    yield f"route:{header}:p95_rate5m", app.routes, GAUGE
    by_le = [f"{route},{le}" for route in app.routes for le in LES]
    yield f"route_le:{header}_bucket:rate5m", by_le, GAUGE
    for name in (
        *("cache_miss_ratio", "error_ratio", "request_p95_seconds", "upstream_p95_seconds"),
        "traffic_guard_requests_per_second",
    ):
        yield f"route_threshold:{name}", app.routes, CONSTANT
    answered = [f'{each},method="GET",status="{code}"' for each in app.by_cache for code in STATUS]
    yield "nginx_route_requests_total", answered, COUNTER
    cut_off = [f'{each},cause="upstream"' for each in app.by_cache[::10]]
    yield "nginx_route_incomplete_responses_total", cut_off, COUNTER
    durations = [f"{each},{le}" for each in app.by_cache for le in LES]
    yield "nginx_route_request_duration_seconds_bucket", durations, COUNTER
    flask = [f'{each},{route},status="200"' for each in app.instances for route in app.routes]
    yield "flask_http_request_duration_seconds_sum", flask, COUNTER


def write(file: TextIO, metrics: Iterable[Metric], times: range) -> None:
    """Write samples at these times (Unix seconds) as OpenMetrics text."""
    all_stamps = [f" {at}\n" for at in times]
    for name, label_sets, kind in metrics:
        stamps = all_stamps[:: 60 // SCRAPE] if name in EVERY_MINUTE else all_stamps
        file.write(f"# TYPE {name} unknown\n")
        for position, labels in enumerate(label_sets):
            prefix = f"{name}{{{labels}}} "
            values: Iterable[str] = repeat("1")
            if kind == COUNTER:
                values = (str(at // SCRAPE) for at in times)
            elif kind == GAUGE:
                values = islice(cycle(CHANGING), position % 97, None)
            file.write("".join([prefix + v + s for v, s in zip(values, stamps, strict=False)]))


def fill(folder: Path, app: App, start: int, end: int) -> None:
    """Write the blocks into folder/data that are not there yet."""
    text = folder / "samples.txt"
    filled = folder / "filled"  # the end of the last block
    boundaries = [start, *range(start // BLOCK * BLOCK + BLOCK, end, BLOCK), end]
    for first, last in pairwise(boundaries):
        if filled.exists() and last <= int(filled.read_text()):
            continue
        with text.open("w") as file:
            write(file, [*recorded(app), *scraped(app)], range(first, last, SCRAPE))
            if newest := range(max(first, end - RECENT), last, SCRAPE):
                write(file, recent(app), newest)
            file.write("# EOF\n")
        create = ["tsdb", "create-blocks-from", f"--max-block-duration={BLOCK}s", "openmetrics"]
        subprocess.run([BIN / "promtool", *create, "--quiet", text, folder / "data"], check=True)
        text.unlink()
        filled.write_text(str(last))
        print(f"written: {(last - start) / (end - start):.0%}", flush=True)


@dataclass(frozen=True)
class Asked:
    """A query of the overview: its panel or annotation, its PromQL, and its number of points."""

    what: str
    expr: str
    points: int  # 0: at the end only


def asked() -> Iterator[Asked]:
    """Every query of the overview, including annotations and the choice of routes."""
    overview: dict[str, Any] = json.loads(OVERVIEW.read_text())
    for panel in overview["panels"]:
        for target in panel.get("targets", []):
            points = 0 if target["instant"] else panel.get("maxDataPoints", POINTS)
            yield Asked(f"{panel['title']} ({target['refId']})", target["expr"], points)
    for annotation in overview["annotations"]["list"]:
        yield Asked(annotation["name"], annotation["target"]["expr"], POINTS_OF_ANNOTATIONS)
    for variable in overview["templating"]["list"]:
        if found := re.fullmatch(r"query_result\((.+)\)", variable.get("definition", "")):
            yield Asked(f"variable {variable['name']}", found[1], 0)


def prepared(query: Asked, span: int, step: int, routes: int) -> str:
    """PromQL with Grafana's values in place of the variables."""
    eight = "|".join(f"/r{number}" for number in range(min(8, routes)))
    values = {
        "$stack": ".*",
        "$instance": ".+",
        "$busiest": eight,
        "$cached": eight,
        "$__rate_interval": f"{max(step + SCRAPE, 4 * SCRAPE)}s",
        "$__interval": f"{step}s",
        "$__range": f"{span}s",
    }
    expr = query.expr
    for name, value in values.items():
        expr = expr.replace(name, value)
    return expr


def measure(server: Prometheus, pid: int, routes: int, span: int, end: int) -> None:
    """Send every query, and print the slowest ones."""
    rows = []
    for query in asked():
        ideal = span / (query.points or POINTS)
        step = min(STEPS, key=lambda each: abs(each - ideal))
        expr = prepared(query, span, step, routes)
        attempts = []
        for _ in range(ROUNDS):
            started, used = time.monotonic(), cpu_seconds(pid)
            if query.points:
                found = server.range(expr, end - span, end, step)
            else:
                found = server.instant(expr, end)
            attempts.append((time.monotonic() - started, cpu_seconds(pid) - used, len(found)))
        rows.append((*min(attempts), query.what))
    rows.sort(reverse=True)
    used = sum(row[1] for row in rows)
    print(f"\n{span / 86400:.3g} days, {len(rows)} queries, together {used:.1f} s of CPU time")
    print("| query | s | CPU s | series |\n| --- | --- | --- | --- |")
    for seconds, cpu, found, what in rows[:SHOWN]:
        print(f"| {what} | {seconds:.2f} | {cpu:.2f} | {found} |")
    print("without a result:", ", ".join(what for *_, found, what in rows if not found) or "none")


def main() -> None:
    """Fill a Prometheus and print the slowest queries of half an hour and of all days."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--routes", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--days", type=float, default=7)
    parser.add_argument("--prometheus", type=Path, default=BIN / "prometheus", metavar="PATH")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="filled, and kept")
    arguments = parser.parse_args()
    span = round(arguments.days * 86400)
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.data or Path(name)
        folder.mkdir(exist_ok=True)
        end_file = folder / "end"
        if not end_file.exists():
            end_file.write_text(str(int(time.time())))
        end = int(end_file.read_text())
        fill(folder, App(arguments.routes, arguments.replicas), end - span - RECENT, end)
        with prometheus(folder, arguments.prometheus) as (server, pid):
            for seconds in (1800, span):
                measure(server, pid, arguments.routes, seconds, end)


if __name__ == "__main__":
    main()
