"""What the telemetry costs: this stack, everything on, beside a plain sample without any.

Both have the same versions of nginx, gunicorn and Flask, and three workers: this stack as it is
shipped, the plain sample with gunicorn's default of one thread. Rounds alternate, and the tables
have the medians of each round's ratio; so compare ratios, not figures of different runs.

- requests a second, and CPU time of nginx and gunicorn for a request, with wrk
- p99 of requests for / while a tenth of the requests takes 0.5 s
- memory, and for this stack the time that `up` takes and that each scrape takes

    .local/venv/bin/python -m tests.bench.watched [--rounds 7] [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.bench.overload import ask
from tests.bench.plain import plain_sample
from tests.bench.top_queries import cpu_seconds
from tests.stacks import Stack, family, launch

PATHS = ("/", "/cache-me", "/info")
CONNECTIONS = 12
QUICK_PER_SECOND, SLOW_PER_SECOND, SLOW = 18, 2, "/?sleep=0.5"

Pids = Callable[[], set[int]]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=10, help="of each load")
    arguments = parser.parse_args()
    began = time.monotonic()
    with (
        launch("local", {"GUNICORN_WORKERS": "3"}) as stack,
        plain_sample("--workers=3") as plain,
    ):
        print(f"./stack up took {time.monotonic() - began:.1f} s")
        sides: dict[str, tuple[str, Pids]] = {
            "plain": (plain.url, lambda: set(family(*plain.pids))),
            "watched": (stack.http, lambda: served_by(stack)),
        }
        print("\n| path | requests/s | ratio | CPU, us | ratio |\n| --- | --- | --- | --- | --- |")
        for path in PATHS:
            compare(path, sides, arguments.rounds, arguments.seconds)
        compare_waits(sides, arguments.rounds, arguments.seconds)
        for name, (_, pids) in sides.items():
            print(f"memory of nginx and gunicorn, {name}: {memory(pids()):.0f} MB")
        print(f"memory of the whole stack: {memory(all_of(stack)):.0f} MB")
        for sample in sorted(
            stack.query("scrape_duration_seconds"), key=lambda each: -each["value"]
        ):
            print(f"scrape of {sample['metric']['job']}: {sample['value'] * 1000:.1f} ms")


def compare(path: str, sides: dict[str, tuple[str, Pids]], rounds: int, seconds: int) -> None:
    """Print a row: requests a second and CPU time of both, and the medians of their ratios."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    costs: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (url, pids) in sides.items():
            before = used(pids())
            requests = load(url + path, seconds)
            rates[name].append(requests / seconds)
            costs[name].append((used(pids()) - before) / requests * 1e6)
    cells = []
    for measured in (rates, costs):
        plain, watched = measured["plain"], measured["watched"]
        ratios = sorted(ours / theirs for theirs, ours in zip(plain, watched, strict=True))
        cells.append(f"{statistics.median(plain):.0f}, {statistics.median(watched):.0f}")
        cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"| `{path}` | {' | '.join(cells)} |", flush=True)


def load(url: str, seconds: int) -> int:
    """Send requests with wrk; return how many were answered."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        print(output)
    return int(re.search(r"(\d+) requests in", output)[1])


def compare_waits(sides: dict[str, tuple[str, Pids]], rounds: int, seconds: int) -> None:
    """Print the p99 of quick requests beside slow ones."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (url, _) in sides.items():
            found[name].append(asyncio.run(p99_of_quick(url, seconds)))
    for name, values in found.items():
        print(f"p99 of quick requests beside slow ones, {name}: {statistics.median(values):.3f} s")


async def p99_of_quick(url: str, seconds: int) -> float:
    """Send quick and slow requests at constant rates; return the quick ones' p99 in seconds."""
    waits: list[float] = []

    async def quick() -> None:
        began = time.monotonic()
        await ask(url, "/")
        waits.append(time.monotonic() - began)

    async def send(per_second: int, request: Callable[[], object]) -> None:
        began, asking = time.monotonic(), []
        for number in range(seconds * per_second):
            await asyncio.sleep(began + number / per_second - time.monotonic())
            asking.append(asyncio.create_task(request()))
        await asyncio.gather(*asking)

    await asyncio.gather(
        send(QUICK_PER_SECOND, quick), send(SLOW_PER_SECOND, lambda: ask(url, SLOW))
    )
    return statistics.quantiles(waits, n=100)[98]


# --- processes ---


def served_by(stack: Stack) -> set[int]:
    """The processes that serve requests: nginx's and gunicorn's."""
    services = ("nginx-proxy", "flask-app")
    return {each.pid for service in services for each in stack.processes(service)}


def all_of(stack: Stack) -> set[int]:
    """The processes of the whole stack."""
    return set(family(int((stack.run / "supervisord.pid").read_text())))


def used(pids: set[int]) -> float:
    """The CPU seconds that these processes have used."""
    return sum(map(cpu_seconds, pids))


def memory(pids: set[int]) -> float:
    """Their memory in MB; what several share is counted once."""
    kilobytes = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kilobytes += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
    return kilobytes / 1024


if __name__ == "__main__":
    main()
