"""The app of faulty.py, and requests that last until the test releases them or that raise.

`?gate=PATH` holds a request as long as that file exists. `?raise=TEXT` logs TEXT and raises it.
`?break=TEXT` streams TEXT, and then raises.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from faulty import app
from flask import Response, request


@app.before_request
def wait_at_gate() -> None:
    """Wait until the gate file is removed."""
    gate = request.args.get("gate")
    while gate and Path(gate).exists():
        time.sleep(0.01)


@app.before_request
def fail() -> None:
    """Log the argument, and raise an exception with it."""
    if "raise" in request.args:
        app.logger.warning("about to raise %s", request.args["raise"])
        raise RuntimeError(request.args["raise"])


@app.before_request
def break_off() -> Response | None:
    """Stream the argument, and raise before the response is complete."""
    text = request.args.get("break")

    def stream() -> Iterator[str]:
        yield text
        raise RuntimeError("broken off")

    return Response(stream()) if text else None
