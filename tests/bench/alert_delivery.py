"""Alerts in real time: which fire in ten quiet minutes, and when a miss storm is reported.

Starts a stack with the project's own rules and settings and a webhook in this process. First it
gets mixed traffic, during which only Watchdog may fire. Then, twice, all requests for /cache-me
miss the cache: at the rate of the hits before, and at a small part of that rate, so that the share
of misses takes nearly the whole window of 5 minutes to pass the threshold. Takes half an hour:

    python -m tests.bench.alert_delivery [--kind local|compose] [--minutes 10]
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.alerting import Receivers, traffic
from tests.stacks import Stack, launch, wait_until

NAME = "CacheMissRatioHigh"
WINDOW, FOR, SLACK = 300, 120, 20  # seconds
LIMIT = WINDOW + FOR + SLACK


def main() -> None:
    """Run both measurements and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=["local", "compose"], default="local")
    parser.add_argument("--minutes", type=float, default=10, help="of quiet traffic")
    arguments = parser.parse_args()
    with started(arguments.kind) as (stack, receivers):
        fired = quiet(stack, 60 * arguments.minutes)
        print(f"{arguments.minutes:g} minutes of mixed traffic: fired {', '.join(sorted(fired))}")
        for clients in (1, 20):
            seconds = storm(stack, receivers, clients)
            print(
                f"storm after {clients} times as many hits: "
                f"first miss to message {seconds:.1f} s, limit {LIMIT} s"
            )


@contextlib.contextmanager
def started(kind: str) -> Iterator[tuple[Stack, Receivers]]:
    """A stack whose alerts go to a webhook of this process."""
    with tempfile.TemporaryDirectory() as folder, Receivers().serving() as receivers:
        Path(folder).chmod(0o755)
        with launch(kind, {"ALERT_SECRETS_DIR": folder}) as stack:
            url = f"http://{stack.host_address}:{receivers.http_port}/webhook"
            Path(folder, "alert_webhook_url").write_text(url)
            stack.restart("alertmanager")
            yield stack, receivers


def quiet(stack: Stack, seconds: float) -> set[str]:
    """The alerts that fire under mixed traffic."""
    with mixed_traffic(stack):
        time.sleep(seconds)
    window = f"{seconds + 60:.0f}s"
    firing = stack.query(f'count_over_time(ALERTS{{alertstate="firing"}}[{window}])')
    return {sample["metric"]["alertname"] for sample in firing}


@contextlib.contextmanager
def mixed_traffic(stack: Stack) -> Iterator[None]:
    """Every page, some misses among the hits, and a path that does not exist."""
    with contextlib.ExitStack() as clients:
        for path in ("/", "/cache-me", "/cache-me", "/cache-me", "/info", "/not-there"):
            clients.enter_context(traffic(stack, path))
        clients.enter_context(traffic(stack, "/cache-me", busting=True))
        yield


def storm(stack: Stack, receivers: Receivers, clients: int) -> float:
    """Seconds from the first miss to the message, after a window with only hits."""
    with contextlib.ExitStack() as hits:
        for _ in range(clients):
            hits.enter_context(traffic(stack, "/cache-me"))
        time.sleep(WINDOW + SLACK)
    before = len(receivers.alerts(NAME, "firing"))
    start = time.monotonic()
    with traffic(stack, "/cache-me", busting=True):
        wait_until(lambda: len(receivers.alerts(NAME, "firing")) > before, 2 * LIMIT, f"{NAME}")
        seconds = time.monotonic() - start
    with traffic(stack, "/cache-me"):
        wait_until(lambda: not stack.query(f'ALERTS{{alertname="{NAME}"}}'), 2 * LIMIT, "its end")
    return seconds


if __name__ == "__main__":
    main()
