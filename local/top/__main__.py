"""Runs `./stack top`: python -m local.top [OPTIONS] --prometheus URL."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from local.top import words
from local.top.frame import Canvas, View, frame
from local.top.live import run
from local.top.options import add_arguments
from local.top.prometheus import Prometheus, PrometheusError
from local.top.snapshot import history, take

WIDTH = 100  # characters of a frame that no terminal shows


def main() -> int:
    """Show what the command line asks for.

    Returns:
        0; 1 where Prometheus does not answer.
    """
    parser = argparse.ArgumentParser(prog="./stack top")
    add_arguments(parser)
    arguments = parser.parse_args()
    prometheus = Prometheus(arguments.prometheus.rstrip("/"))
    view = View(arguments.sort)
    plain = arguments.ascii or not words.unicode_expected(os.environ, sys.stdout.encoding or "")
    symbols = words.ASCII if plain else words.UNICODE
    if sys.stdout.isatty():
        for name in ("COLUMNS", "LINES"):  # rich prefers them to the real size, which changes
            os.environ.pop(name, None)
    console = Console(highlight=False)
    try:
        if arguments.json:
            snapshot = take(prometheus, arguments.window, time.time())
            print(json.dumps(snapshot.as_dict(), indent=2))
        elif arguments.svg:
            picture = picture_console()
            show_once(picture, prometheus, view, arguments.window, words.UNICODE)
            svg = picture.export_svg(title="./stack top")
            Path(arguments.svg).write_text(svg, encoding="utf-8")
        elif arguments.once or not console.is_terminal or console.is_dumb_terminal:
            if not console.is_terminal:
                console.width = int(os.environ.get("COLUMNS") or WIDTH)
            show_once(console, prometheus, view, arguments.window, symbols)
        else:
            run(console, prometheus, view, arguments.window, symbols)
    except PrometheusError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    return 0


def show_once(
    console: Console, prometheus: Prometheus, view: View, window: str, symbols: words.Symbols
) -> None:
    """Print one frame."""
    now = time.time()
    snapshot = take(prometheus, window, now)
    course = history(prometheus, window, now)
    canvas = Canvas(symbols, prometheus.url, console.width)
    console.print(frame(snapshot, course, view, canvas))


def picture_console() -> Console:
    """A console that shows nothing and keeps what is printed, in colour."""
    return Console(
        record=True,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=WIDTH,
        highlight=False,
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
