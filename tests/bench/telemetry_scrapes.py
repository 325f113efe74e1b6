"""The cost of a scrape: idle, with every thread stuck, and after 300 recycled workers.

Scrapes of two gunicorns alternate, so that a noisy machine slows both equally.

    python -m tests.bench.telemetry_scrapes [--recycles 300] [--scrapes 300]
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.gunicorns import Gunicorn, gunicorn, total, wait_for_metrics

THREADS, WAITING = 4, 100
REQUESTS_A_WORKER = 4
EXITS = 'gunicorn_worker_exits_total{reason="exit"}'


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recycles", type=int, default=300)
    parser.add_argument("--scrapes", type=int, default=300)
    arguments = parser.parse_args()

    print("| | files | series | scrape: median ms | slowest ms |")
    print("| --- | --- | --- | --- | --- |")
    for workers in (3, 64):
        with _workers(workers) as idle, _workers(workers) as stuck:
            requests = workers * THREADS + WAITING
            with stuck.held_requests(requests):
                wait_for_metrics(stuck, _is_stuck, "every thread stuck")
                states = {
                    f"{workers} workers, idle": idle,
                    f"{workers} workers, every thread stuck, {WAITING} waiting": stuck,
                }
                _compare(states, arguments.scrapes)
    recycling = {"GUNICORN_MAX_REQUESTS": str(REQUESTS_A_WORKER)}
    with _workers(3, **recycling) as fresh, _workers(3, **recycling) as recycled:
        _ask_until_recycled(fresh, 3)  # every slot has counted requests
        _ask_until_recycled(recycled, arguments.recycles)
        states = {
            f"3 workers, after {running.metrics()[EXITS]:.0f} recycles": running
            for running in (fresh, recycled)
        }
        first, last = _compare(states, arguments.scrapes)
    print(f"\nAfter recycling, {last / first:.2f} times the scrape time.")


def _workers(count: int, **settings: str) -> contextlib.AbstractContextManager[Gunicorn]:
    return gunicorn(
        GUNICORN_WORKERS=str(count),
        GUNICORN_THREADS=str(THREADS),
        GUNICORN_PRELOAD_APP="true",
        **settings,
    )


def _is_stuck(metrics: dict[str, float]) -> bool:
    places = metrics["gunicorn_workers"] * metrics["gunicorn_worker_threads"]
    return total(metrics, "gunicorn_worker_requests_in_flight") == places


def _compare(states: dict[str, Gunicorn], scrapes: int) -> Iterator[float]:
    """Scrape all alternately; print a row for each, and return the medians in milliseconds."""
    milliseconds: dict[str, list[float]] = {state: [] for state in states}
    for _ in range(scrapes):
        for state, running in states.items():
            started = time.perf_counter()
            running.scrape()
            milliseconds[state].append((time.perf_counter() - started) * 1000)
    for state, running in states.items():
        files = len(list(running.counts.iterdir()))
        median, slowest = statistics.median(milliseconds[state]), max(milliseconds[state])
        series = len(running.metrics())
        print(f"| {state} | {files} | {series} | {median:.1f} | {slowest:.1f} |")
    return map(statistics.median, milliseconds.values())


def _ask_until_recycled(running: Gunicorn, times: int) -> None:
    with ThreadPoolExecutor(3) as pool:
        while running.metrics()[EXITS] < times:
            list(pool.map(lambda _: running.get(), range(3 * REQUESTS_A_WORKER)))


if __name__ == "__main__":
    main()
