"""Routes that are slow or fail, for `./stack traffic`: only with FLASK_DEMO=true."""

import os
import time

from flask import Blueprint, abort, request

SLOWEST = 10.0  # seconds; anyone can send such requests, and each keeps a thread busy

demo = Blueprint("demo", __name__, url_prefix="/demo")


def enabled() -> bool:
    """Return whether FLASK_DEMO switches these routes on.

    Raises:
        ValueError: FLASK_DEMO is neither true nor false.
    """
    value = os.environ.get("FLASK_DEMO") or "false"
    if value not in ("true", "false"):
        raise ValueError(f"FLASK_DEMO={value}: expected true or false")
    return value == "true"


@demo.get("/slow")
def slow() -> str:
    """Answer after `seconds` (default 0.5, at most 10); 400 if that is no such number."""
    try:
        seconds = float(request.args.get("seconds", "0.5"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= SLOWEST:
        abort(400, f"seconds: expected a number from 0 to {SLOWEST:g}")
    time.sleep(seconds)
    return f"after {seconds:g} s\n"


@demo.get("/error")
def error() -> None:
    """Answer 500."""
    abort(500)
