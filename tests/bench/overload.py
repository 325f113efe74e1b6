"""What users get while more requests arrive than the workers can serve.

Three measurements, each taken alternately from this stack, from this stack without keep-alive to
gunicorn, and from a plain nginx before a stock gunicorn, all with the same workers and threads.
Compare only numbers of the same run.

- neighbours: clients on kept connections ask for an answer that takes 0.5 s, 2.5 times as fast as
  the threads can answer. Beside them, five requests a second ask for /info: how long do they wait?
- deadline: twice as many such requests arrive as the threads can serve, each from a client of its
  own that leaves after 10 s. Which share of what the threads can serve is answered in time?
- throughput: requests a second of /, with wrk.

    .local/venv/bin/python -m tests.bench.overload [neighbours deadline throughput] [--rounds 3]
"""

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.plain import plain_sample
from tests.stacks import ComposeStack, Stack, launch

WORKERS, THREADS = 3, 4
SERVICE_SECONDS = 0.5
SLOW = f"/?sleep={SERVICE_SECONDS}"
OVERLOAD = 2.5
NEIGHBOURS_PER_SECOND = 5
ARRIVALS = 2  # times what the threads can serve
PATIENCE_SECONDS = 10


def main() -> None:
    """Print a table for each measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurements", nargs="*", choices=[*MEASUREMENTS, []])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=int, default=25, help="of each load (default %(default)s)"
    )
    parser.add_argument("--compose", action="store_true", help="three replicas in containers")
    parser.add_argument(
        "--beside", action="append", default=[], metavar="NAME=URL", help="measure this one, too"
    )
    arguments = parser.parse_args()
    replicas = 3 if arguments.compose else 1
    with ExitStack() as running:
        urls = dict(given.split("=", 1) for given in arguments.beside)
        for name, settings in {
            "this stack": {},
            "no keep-alive": {"GUNICORN_KEEPALIVE": "0"},
        }.items():
            stack = running.enter_context(_stack(replicas, settings))
            urls[name] = stack.http
        if replicas == 1:
            options = (f"--workers={WORKERS}", f"--threads={THREADS}")
            urls["plain"] = running.enter_context(plain_sample(*options)).url
        for name in arguments.measurements or MEASUREMENTS:
            measure = MEASUREMENTS[name]
            rounds = {each: [] for each in urls}
            for _ in range(arguments.rounds):
                for each, url in urls.items():
                    rounds[each].append(
                        measure(url, replicas * WORKERS * THREADS, arguments.seconds)
                    )
            _print(name, rounds)


def _print(name: str, rounds: dict[str, list[dict[str, float]]]) -> None:
    columns = list(next(iter(rounds.values()))[0])
    print(f"\n| {name} | {' | '.join(columns)} |")
    print(f"| --- |{' --- |' * len(columns)}")
    for variant, measured in rounds.items():
        cells = []
        for column in columns:
            values = sorted(each[column] for each in measured)
            cells.append(f"{statistics.median(values):.4g} ({values[0]:.4g} to {values[-1]:.4g})")
        print(f"| {variant} | {' | '.join(cells)} |", flush=True)


# The measurements


def neighbours(url: str, threads: int, seconds: float) -> dict[str, float]:
    """Return the waits for /info beside clients that keep all threads busy, in seconds."""

    async def run() -> list[float]:
        end = time.monotonic() + seconds
        clients = int(OVERLOAD * threads * SERVICE_SECONDS / SERVICE_SECONDS * 2)
        overload = [asyncio.create_task(_ask_until(url, SLOW, end)) for _ in range(clients)]
        await asyncio.sleep(2)
        beside = []
        while time.monotonic() < end:
            beside.append(asyncio.create_task(_time(url, "/info")))
            await asyncio.sleep(1 / NEIGHBOURS_PER_SECOND)
        waits = await asyncio.gather(*beside)
        await asyncio.gather(*overload)
        return waits

    waits = asyncio.run(run())
    percentiles = statistics.quantiles(waits, n=100)
    return {
        "median, s": statistics.median(waits),
        "p90, s": percentiles[89],
        "p99, s": percentiles[98],
    }


def deadline(url: str, threads: int, seconds: float) -> dict[str, float]:
    """Return the share of what the threads can serve that clients got before they left."""
    statuses: list[int] = []

    async def ask() -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                statuses.append(await ask(url, SLOW))
        except TimeoutError:
            statuses.append(0)

    async def run() -> tuple[int, int, int]:
        capacity = threads / SERVICE_SECONDS
        start, sent, asking = time.monotonic(), 0, []
        while (now := time.monotonic() - start) < seconds:
            while sent < now * capacity * ARRIVALS:
                asking.append(asyncio.create_task(ask()))
                sent += 1
            await asyncio.sleep(0.01)
        answered, refused = statuses.count(200), statuses.count(503)
        left = statuses.count(0)
        await asyncio.gather(*asking)
        return answered / capacity / seconds, refused, left

    answered, refused, left = asyncio.run(run())
    return {"answered in time": answered, "got 503": refused, "left": left}


def throughput(url: str, threads: int, seconds: float) -> dict[str, float]:
    """Return requests a second of /, and the median and p99 of wrk's clients in milliseconds."""
    command = ["wrk", "-t1", f"-c{4 * threads}", f"-d{seconds:.0f}s", "--latency", url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        print(output, file=sys.stderr)
    return {"requests/s": float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])}


MEASUREMENTS: dict[str, Callable[[str, int, float], dict[str, float]]] = {
    measure.__name__: measure for measure in (neighbours, deadline, throughput)
}


# Clients


async def _ask_until(url: str, path: str, end: float) -> None:
    connection = None
    while time.monotonic() < end:
        connection = connection or await _connect(url)
        if not await _exchange(connection, path):
            connection[1].close()
            connection = None


async def _time(url: str, path: str) -> float:
    start = time.monotonic()
    await ask(url, path)
    return time.monotonic() - start


async def ask(url: str, path: str) -> int:
    """Send a request on a connection of its own; return its status."""
    connection = await _connect(url)
    try:
        return await _exchange(connection, path)
    finally:
        connection[1].close()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def _exchange(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str
) -> int:
    """Send a request and read its response; return its status, or 0 if there was none."""
    reader, writer = connection
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0
    length = re.search(rb"(?i)content-length: (\d+)", head)
    await reader.readexactly(int(length[1]))
    return int(head.split()[1])


# What is measured


@contextmanager
def _stack(replicas: int, settings: dict[str, str]) -> Iterator[Stack]:
    workers = {"GUNICORN_WORKERS": str(WORKERS), "GUNICORN_THREADS": str(THREADS)}
    with launch("compose" if replicas > 1 else "local", workers | settings) as stack:
        if isinstance(stack, ComposeStack):
            stack.scale(replicas)
        yield stack


if __name__ == "__main__":
    main()
