"""What a replica that hangs, and a request that kills workers, cost other requests.

40 requests a second, GET and POST in turn, before three replicas in containers, then before one:

- deadly: for 10 s a client sends a request that kills its worker, as often as it gets an answer.
- hang: the last replica is paused for 20 s.

Prints how many of the others failed or had no answer before the fault ended, and the p99 of the
rest. To compare with another nginx/templates, change it and run this again.

    .local/venv/bin/python -m tests.bench.replicas [3 1]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import requests

from tests.load import Load
from tests.stacks import ComposeStack, launch, wait_until

RATE = 40  # requests a second
DEADLY_SECONDS, HANG_SECONDS = 10, 20


def deadly(stack: ComposeStack) -> str:
    """Send requests that kill their workers."""
    end, sent = time.monotonic() + DEADLY_SECONDS, 0
    before = stack.workers_killed()
    while time.monotonic() < end:
        requests.get(f"{stack.http}/?die=9", timeout=30)
        sent += 1
    return f"{stack.workers_killed() - before} workers killed by {sent} requests"


def hang(stack: ComposeStack) -> str:
    """Pause the last replica for a while."""
    with stack.paused(stack.containers("flask-app")[-1]):
        time.sleep(HANG_SECONDS)
    return ""


def measure(stack: ComposeStack, replicas: int, cause: Callable[[ComposeStack], str]) -> None:
    """Print a row of the table."""
    with Load(f"{stack.http}/?size=10", RATE) as load:
        wait_until(lambda: len(load.answers) > 2 * RATE, 30, "load")
        began = time.monotonic()
        note = cause(stack)
        ended = time.monotonic()
    during = [each for each in load.answers if began < each.began < ended - 1]
    held = [each for each in during if each.ended > ended - 0.5]
    failed = [each for each in during if each.failed and each not in held]
    times = [each.ended - each.began for each in during if each not in held and not each.failed]
    p99 = f"{statistics.quantiles(times, n=100)[98] * 1000:.0f} ms" if len(times) > 1 else "none"
    gets = sum(each.method == "GET" for each in failed)
    print(
        f"| {replicas} | {cause.__name__} | {len(during)} | {len(failed)} ({gets} GET) "
        f"| {len(held)} | {p99} | {note} |",
        flush=True,
    )


def main() -> None:
    """Print one table."""
    print("| replicas | fault | requests | failed | had to wait for its end | p99 of the rest | |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for replicas in [int(each) for each in sys.argv[1:]] or [3, 1]:
        with launch("compose") as stack:
            assert isinstance(stack, ComposeStack)
            stack.scale(replicas)
            asked = f'count(up{{job="flask-app"}} == 1) == {replicas}'
            wait_until(lambda asked=asked, stack=stack: stack.query(asked), 60, "all replicas")
            measure(stack, replicas, hang)
            measure(stack, replicas, deadly)


if __name__ == "__main__":
    main()
