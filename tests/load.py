"""Load for tests: a machine that is busy, and clients that send requests at a constant rate."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import subprocess
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

LOOPS = 6
LONGEST = 180  # seconds, in case the test is killed before it ends the loops
PATIENCE = 30  # seconds that a client waits for its answer
BODY = "a=1"


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    """Run endless loops beside the test."""
    command = ["timeout", str(LONGEST), "sh", "-c", "while :; do :; done"]
    running = [subprocess.Popen(command) for _ in range(LOOPS)]
    try:
        yield
    finally:
        for loop in running:
            loop.terminate()
        for loop in running:
            loop.wait()


@dataclasses.dataclass(frozen=True)
class Answer:
    """A request that has ended; times are those of time.monotonic()."""

    method: str
    kept: bool  # whether the client keeps its connections
    began: float
    ended: float
    status: int  # 0: no answer, or only a part of one

    @property
    def failed(self) -> bool:
        """Whether the client did not get what it asked for."""
        return self.status != 200


class Load:
    """Clients that send GET and POST at a constant rate, with and without keep-alive in turn.

    The rate does not depend on the answers: slow ones do not delay further requests.
    """

    KINDS = tuple(itertools.product(("GET", "POST"), (True, False)))

    def __init__(self, url: str, rate: float) -> None:
        """Prepare `rate` requests a second for `url`; `{}` in it is each request's number."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._target = f"{parts.path or '/'}?{parts.query}"
        self._rate = rate
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send_all()))
        self.answers: list[Answer] = []

    def __enter__(self) -> Load:  # noqa: D105
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:  # noqa: D105
        self._stopped.set()
        self._thread.join()

    @property
    def failed(self) -> list[Answer]:
        """The requests that failed."""
        return [answer for answer in self.answers if answer.failed]

    async def _send_all(self) -> None:
        began, asking = time.monotonic(), set()
        for number, (method, kept) in enumerate(itertools.cycle(self.KINDS)):
            await asyncio.sleep(began + number / self._rate - time.monotonic())
            if self._stopped.is_set():
                break
            target = self._target.replace("{}", str(number))
            task = asyncio.create_task(self._ask(method, target, kept=kept))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)
        for _, writer in self._idle:
            writer.close()

    async def _ask(self, method: str, target: str, *, kept: bool) -> None:
        began, status = time.monotonic(), 0
        with contextlib.suppress(OSError, EOFError, asyncio.TimeoutError):
            status = await asyncio.wait_for(self._exchange(method, target, kept=kept), PATIENCE)
        self.answers.append(Answer(method, kept, began, time.monotonic(), status))

    async def _exchange(self, method: str, target: str, *, kept: bool) -> int:
        reader, writer = await self._connection(kept=kept)
        try:
            body = BODY if method == "POST" else ""
            connection = "keep-alive" if kept else "close"
            writer.write(
                f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n"
                f"Connection: {connection}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r")[0])
            await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if "connection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head.split()[1])

    async def _connection(self, *, kept: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while kept and self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # else the server has closed it meanwhile
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)
