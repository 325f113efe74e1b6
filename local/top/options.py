"""The command line of `./stack top`. Only the standard library: ./stack itself reads it, too."""

from __future__ import annotations

import argparse

WINDOWS = ("1m", "5m", "1h")
# The heading under which the table of routes is sorted, by the name the user types.
SORTS = ("route", "requests", "errors", "hit-ratio", "p95-hits", "p95-misses", "flask")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `./stack top`."""
    parser.description = "Show the stack live in the terminal; press ? there for the keys."
    parser.add_argument("--once", action="store_true", help="print one frame as text")
    parser.add_argument("--json", action="store_true", help="print one frame as JSON")
    parser.add_argument("--svg", metavar="FILE", help="write one frame to a file, as a picture")
    parser.add_argument("--window", choices=WINDOWS, default="1m", help="default: 1m")
    parser.add_argument(
        "--sort",
        choices=SORTS,
        default="flask",
        help="column to sort the routes by; default: flask",
    )
    parser.add_argument("--ascii", action="store_true", help="draw without Unicode characters")
    parser.add_argument(
        "--prometheus", metavar="URL", help="another Prometheus than that of the running stack"
    )
