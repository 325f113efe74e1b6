"""The live view: draws, reads keys, and asks Prometheus in the background."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live

from local.top import words
from local.top.frame import Canvas, View, frame
from local.top.options import SORTS, WINDOWS
from local.top.prometheus import Prometheus, PrometheusError
from local.top.snapshot import HISTORY, POINTS, Snapshot, history, take

REFRESH = 2.0  # seconds; Prometheus scrapes every 5
TICK = 0.2  # seconds between looks at the clock and the size of the terminal
PAGE = 10  # routes
KEYS = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "k": "up",
    "j": "down",
    "h": "?",
    " ": "p",
    "\x04": "q",
}
SCROLL = {"up": -1, "down": 1, "page up": -PAGE, "page down": PAGE}


class Source:
    """The newest snapshot, and why there is none since.

    Args:
        prometheus: the server to query.
        window: of the rates; may be set at any time.
    """

    def __init__(self, prometheus: Prometheus, window: str) -> None:
        self.window = window
        self.snapshot: Snapshot | None = None
        self.history: dict[str, list[float | None]] = {}
        self.problem = ""
        self._prometheus = prometheus
        self._history_of = ("", 0.0)  # window and time
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Ask for the first snapshot, and go on in the background.

        Raises:
            PrometheusError: it does not answer.
        """
        self._update()
        self._thread.start()

    def ask_now(self) -> None:
        """Have the next snapshot at once."""
        self._wanted.set()

    def _run(self) -> None:
        pause = REFRESH
        while True:
            self._wanted.wait(pause)
            self._wanted.clear()
            begin = time.monotonic()
            try:
                self._update()
                self.problem = ""
            except PrometheusError as error:
                self.problem = str(error)
            # With hundreds of routes queries take long: use at most a third of Prometheus' time.
            pause = max(REFRESH, 2 * (time.monotonic() - begin))

    def _update(self) -> None:
        now, window = time.time(), self.window
        snapshot = take(self._prometheus, window, now)
        # The history gets a new point only once in each step.
        step = HISTORY[window] / POINTS
        if self._history_of != (window, now // step):
            self.history = history(self._prometheus, window, now)
            self._history_of = (window, now // step)
        self.snapshot = snapshot


def run(
    console: Console, prometheus: Prometheus, view: View, window: str, symbols: words.Symbols
) -> None:
    """Show the live view until its user quits.

    Raises:
        PrometheusError: Prometheus does not answer at the start; later, the view says so.
    """
    view.live = True
    source = Source(prometheus, window)
    source.start()
    with (
        _keyboard() as suspended,
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        shown = source.snapshot, source.history
        drawn: object = None
        while True:
            if suspended.is_set():
                suspended.clear()
                _suspend(live)
                drawn = None
            if not view.paused:
                shown = source.snapshot, source.history
                view.problem = _problem(source)
            state = (shown, dataclasses.astuple(view), console.size)
            if state != drawn:
                canvas = Canvas(symbols, prometheus.url, *console.size)
                live.update(frame(*shown, view, canvas), refresh=True)
                drawn = state
            for key in _pressed():
                if key == "q":
                    return
                _obey(key, view, source)


def _problem(source: Source) -> str:
    if not source.problem or source.snapshot is None:
        return ""
    return f"no news for {time.time() - source.snapshot.time:.0f} s: {source.problem}"


def _obey(key: str, view: View, source: Source) -> None:
    """Do what a key asks for."""
    if key in ("s", "S"):
        step = 1 if key == "s" else -1
        view.sort = SORTS[(SORTS.index(view.sort) + step) % len(SORTS)]
    elif key == "r":
        view.reverse = not view.reverse
    elif key == "p":
        view.paused = not view.paused
    elif key == "?":
        view.help = not view.help
    elif key == "w":
        source.window = WINDOWS[(WINDOWS.index(source.window) + 1) % len(WINDOWS)]
        view.paused = False
        source.ask_now()
    elif key in SCROLL and source.snapshot:
        last = len(source.snapshot.routes) - 1
        view.offset = max(0, min(view.offset + SCROLL[key], last))


def _pressed() -> Iterator[str]:
    """The keys pressed within a tick; "q" where the terminal is gone."""
    standard_input = sys.stdin.fileno()
    ready, _, _ = select.select([standard_input], [], [], TICK)
    if not ready:
        return
    try:
        text = os.read(standard_input, 1024).decode(errors="ignore")
    except OSError:
        text = ""
    if not text:
        yield "q"
    while text:
        sequence = next((each for each in KEYS if text.startswith(each)), text[0])
        yield KEYS.get(sequence, sequence)
        text = text[len(sequence) :]


@contextlib.contextmanager
def _keyboard() -> Iterator[threading.Event]:
    """Keys are read as they are pressed, and not shown; Ctrl-Z sets the event."""
    standard_input = sys.stdin.fileno()
    before = termios.tcgetattr(standard_input)
    suspended = threading.Event()
    signal.signal(signal.SIGTSTP, lambda *_: suspended.set())
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    tty.setcbreak(standard_input)
    try:
        yield suspended
    finally:
        termios.tcsetattr(standard_input, termios.TCSADRAIN, before)


def _suspend(live: Live) -> None:
    """After Ctrl-Z, give the terminal to the shell until the shell continues this process."""
    standard_input = sys.stdin.fileno()
    settings = termios.tcgetattr(standard_input)
    live.stop()
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)
    termios.tcsetattr(standard_input, termios.TCSADRAIN, settings)
    live.start()
