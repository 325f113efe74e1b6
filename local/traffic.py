"""Sends a known kind of traffic to the stack: `./stack traffic SCENARIO`.

Only the standard library, so that it also runs in a container that has Python and nothing else
(compose.yaml, profile `traffic`): there it is a program of its own.
"""

from __future__ import annotations

import argparse
import array
import collections
import dataclasses
import http.client
import itertools
import math
import secrets
import signal
import sys
import textwrap
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence

IN_COMPOSE = "http://nginx-proxy"
MAX_RATE = 1000.0  # requests per second
MAX_DURATION = 3600.0  # seconds
LONGEST_ANSWER = 70.0  # seconds; nginx gives up after 65
IDLE = 30.0  # seconds after which a connection is not used again; nginx closes it after 75
TEN_MILLISECONDS = 0.01
NO_ANSWER = "no answer"
DEMO = "/demo/"
DEMO_IS_OFF = (
    "The demo routes are off: Flask answered 404 to {path}. Switch them on, for a stack that is "
    "not open to others:\n  ./stack down && FLASK_DEMO=true ./stack up"
)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A kind of traffic.

    Args:
        summary: what it sends, in a line for `--help`.
        watch: what its user will see, and where.
        paths: sent in rotation; `{n}` becomes a text that no request had before.
        rate: requests per second, unless the user asks for another rate.
        duration: seconds, unless the user asks for another duration.
        connections: how many requests are in flight at once, at most.
        burst: (period, length, factor): in each period of seconds, `length` of them have the rate
            times the factor.
    """

    summary: str
    watch: str
    paths: tuple[str, ...]
    rate: float
    duration: float
    connections: int = 32
    burst: tuple[float, float, float] | None = None


SLOW = f"{DEMO}slow?seconds=1.5"

SCENARIOS = {
    "steady": Scenario(
        summary="ordinary traffic: six of ten requests can come from the cache",
        watch="The hit ratio of /cache-me goes to nearly 100 %; no errors; the workers are idle.",
        paths=("/cache-me", "/cache-me", "/info", "/cache-me", "/") * 2,
        rate=20,
        duration=120,
    ),
    "miss-storm": Scenario(
        summary="every URL is new, so that the cache is of no use",
        watch=(
            "The hit ratio of /cache-me falls to 0 %, and Flask gets every request. "
            "CacheMissRatioHigh fires two minutes after misses became more than half of the "
            "requests of the last five minutes."
        ),
        paths=("/cache-me?miss-storm={n}",),
        rate=10,
        duration=300,
    ),
    "slow-upstream": Scenario(
        summary="one request in five takes Flask 1.5 s",
        watch=(
            "The p95 of /demo/slow is 1.5 s and three threads are busy; the other routes stay "
            "fast. UpstreamSlow fires after some five minutes."
        ),
        paths=(SLOW, "/info", "/cache-me", "/info", "/"),
        rate=10,
        duration=420,
    ),
    "errors": Scenario(
        summary="one request in four fails with 500",
        watch=(
            "The error ratio goes to 25 %. The availability budget burns and its alert fires "
            "after some two minutes, ErrorRatioHigh after some five."
        ),
        paths=(f"{DEMO}error", "/info", "/cache-me", "/info"),
        rate=10,
        duration=420,
    ),
    "burst": Scenario(
        summary="every 15 s, two seconds of ten times the rate",
        watch=(
            "Peaks in the request rate. While the queue time and the p95 stay low, the workers "
            "have room for such a burst."
        ),
        paths=("/info", "/cache-me", "/"),
        rate=10,
        duration=120,
        burst=(15, 2, 10),
    ),
    "overload": Scenario(
        summary="more slow requests than there are threads to answer them",
        watch=(
            "Every thread is busy (100 % of the workers), requests wait in the queue and the "
            "listen backlog, and all routes become slow. Requests that wait longer than "
            "GUNICORN_QUEUE_TIMEOUT get 503. RequestQueueing, UpstreamSlow and WorkersSaturated "
            "fire after some five minutes."
        ),
        paths=(SLOW, SLOW, SLOW, "/info"),
        rate=50,
        duration=420,
        connections=64,
    ),
}


class Traffic:
    """One run of a scenario.

    Args:
        address: the URL of the stack, without a path.
        scenario: what to send.
        rate: requests per second.
        duration: seconds during which requests are sent; then it waits for the last answers.
    """

    def __init__(self, address: str, scenario: Scenario, rate: float, duration: float) -> None:
        parts = urllib.parse.urlsplit(address)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._due = _schedule(scenario, rate, duration)
        self._paths = itertools.cycle(scenario.paths)
        self._run = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._start = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._clients = [
            threading.Thread(target=self._send_all, daemon=True)
            for _ in range(scenario.connections)
        ]
        self.duration = duration
        self.sent = 0
        self.unsent = 0  # due, but all connections waited for answers
        self.statuses: collections.Counter[str] = collections.Counter()
        self.cache_statuses: collections.Counter[str] = collections.Counter()
        self.latencies = array.array("d")  # seconds
        self.problem = ""  # why it stopped early

    def run(self, progress: Callable[[int], None]) -> None:
        """Send everything and wait for the answers; `progress` is called once a second."""
        self._start = time.monotonic()
        seconds = itertools.count(1)
        for client in self._clients:
            client.start()
        for client in self._clients:
            while client.is_alive():
                client.join(1)
                if client.is_alive():
                    progress(next(seconds))
        if not self._stopped.is_set():
            self.unsent = sum(1 for _ in self._due)

    def stop(self) -> None:
        """Send nothing more, and wait for the answers to what was sent."""
        self._stopped.set()
        for client in self._clients:
            client.join()

    def by_status(self) -> str:
        """The answers' statuses and how many had each."""
        with self._lock:
            return counts(self.statuses)

    def _send_all(self) -> None:
        connection: http.client.HTTPConnection | None = None
        used = 0.0
        while (due := self._next()) is not None:
            if self._stopped.wait(max(0.0, self._start + due - time.monotonic())):
                break
            if connection is None or time.monotonic() - used > IDLE:
                if connection is not None:
                    connection.close()
                connection = http.client.HTTPConnection(
                    self._host, self._port, timeout=LONGEST_ANSWER
                )
            self._send(connection)
            used = time.monotonic()
        if connection is not None:
            connection.close()

    def _next(self) -> float | None:
        """When the next request is due, in seconds after the start; None where none is left."""
        with self._lock:
            if self._stopped.is_set() or time.monotonic() - self._start > self.duration:
                return None
            return next(self._due, None)

    def _send(self, connection: http.client.HTTPConnection) -> None:
        """Send one request and count its answer."""
        with self._lock:
            path = next(self._paths).replace("{n}", f"{self._run}-{next(self._numbers)}")
        begin = time.monotonic()
        try:
            connection.request("GET", path, headers={"User-Agent": "stack-traffic"})
            response = connection.getresponse()
            response.read()
            status = str(response.status)
            cache = response.headers.get("X-Cache-Status") or "none"
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens it again
            status = cache = NO_ANSWER
        with self._lock:
            self.sent += 1
            self.statuses[status] += 1
            self.cache_statuses[cache] += 1
            self.latencies.append(time.monotonic() - begin)
            if status == "404" and path.startswith(DEMO):
                self.problem = DEMO_IS_OFF.format(path=path.partition("?")[0])
                self._stopped.set()


def _schedule(scenario: Scenario, rate: float, duration: float) -> Iterator[float]:
    """The seconds after the start at which requests are due."""
    due = 0.0
    while due < duration - 1e-6:  # the sum of many steps is a little off
        yield due
        factor = 1.0
        if scenario.burst:
            period, length, times = scenario.burst
            factor = times if due % period < length else 1.0
        due += 1 / (rate * factor)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def milliseconds(seconds: float) -> str:
    """A time to two or three digits."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.{0 if seconds >= TEN_MILLISECONDS else 1}f} ms"


def counts(counter: collections.Counter[str]) -> str:
    """The counts by name, the most frequent first."""
    return ", ".join(f"{name}: {count}" for name, count in counter.most_common())


def summary(traffic: Traffic, seconds: float) -> str:
    """What was sent and what came back."""
    rate = traffic.sent / max(seconds, 1)
    lines = [f"sent             {traffic.sent} requests in {seconds:.0f} s ({rate:.1f}/s)"]
    if traffic.sent:
        levels = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("slowest", 1))
        times = (
            f"{name} {milliseconds(percentile(traffic.latencies, share))}" for name, share in levels
        )
        lines += [
            f"by status        {counts(traffic.statuses)}",
            f"by cache status  {counts(traffic.cache_statuses)}",
            f"time to answer   {', '.join(times)}",
        ]
    if traffic.unsent:
        lines.append(
            f"not sent         {traffic.unsent} more were due, "
            "but every connection still waited for an answer"
        )
    return "\n".join(lines)


def show_progress(traffic: Traffic, second: int) -> None:
    """Print progress: on a terminal over the last line, elsewhere a line every ten seconds."""
    text = f"[{second:4} s of {traffic.duration:.0f}] sent {traffic.sent}; {traffic.by_status()}"
    if sys.stdout.isatty():
        print(f"\r{text}\x1b[K", end="", flush=True)
    elif second % 10 == 0:
        print(text, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `./stack traffic`."""
    listing = "\n".join(
        f"  {name:<14} {each.summary} ({each.rate:g}/s for {each.duration:g} s)"
        for name, each in SCENARIOS.items()
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"Send traffic to this stack, and say what to watch.\n\n{listing}"
    parser.add_argument("scenario", choices=SCENARIOS, metavar="SCENARIO", help="one of the above")
    parser.add_argument(
        "--rate",
        type=_number(MAX_RATE),
        metavar="N",
        help=f"requests per second, up to {MAX_RATE:g}",
    )
    parser.add_argument(
        "--duration", type=_number(MAX_DURATION), metavar="SECONDS", help=f"up to {MAX_DURATION:g}"
    )


def _number(most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most:
            message = f"expected a number above 0, up to {most:g}, found {text!r}"
            raise argparse.ArgumentTypeError(message)
        return value

    return parse


def run(arguments: argparse.Namespace, address: str) -> int:
    """Run a scenario against the stack at `address` (a URL without a path).

    Returns:
        0; 1 where nothing answered, or the scenario needs routes that are switched off.
    """
    scenario = SCENARIOS[arguments.scenario]
    rate = arguments.rate or scenario.rate
    duration = arguments.duration or scenario.duration
    print(f"{arguments.scenario}: {scenario.summary}; {rate:g} requests/s for {duration:g} s")
    print(textwrap.fill(f"Watch: {scenario.watch}", width=80, subsequent_indent=" " * 7))
    print("Where: ./stack top, or Grafana's Stack overview. Ctrl-C ends it.", flush=True)
    traffic = Traffic(address, scenario, rate, duration)
    start = time.monotonic()
    try:
        traffic.run(lambda second: show_progress(traffic, second))
    except KeyboardInterrupt:
        print("\nstopping; waiting for the answers to what was sent", flush=True)
        traffic.stop()
        raise
    finally:
        if sys.stdout.isatty():
            print("\r\x1b[K", end="")
        print(summary(traffic, time.monotonic() - start), flush=True)
    if traffic.problem:
        print(traffic.problem, file=sys.stderr)
    nothing = traffic.sent == traffic.statuses[NO_ANSWER]
    if nothing:
        print(f"nothing answered at {address}: is the stack up?", file=sys.stderr)
    return 1 if traffic.problem or nothing else 0


def main() -> int:
    """Run a scenario inside Compose's network."""
    parser = argparse.ArgumentParser(prog="traffic")
    add_arguments(parser)
    return run(parser.parse_args(), IN_COMPOSE)


if __name__ == "__main__":
    # The engine ends a container by SIGTERM: sum up then, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
