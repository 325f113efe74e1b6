"""The sample app, made slow, failing or chatty on demand. For tests only.

Any URL takes these arguments: `sleep` (seconds before the response), `compute` (seconds of CPU time
before it), `allocate` (bytes of memory before it), `hold` (bytes that the worker keeps), `size`
(bytes of the response), `die` (number of a signal that the worker sends to itself), `status` (of
the response), `then` and `from` (a status, and the Unix time from which the response has it and no
`header`), `header` (`Name=value`, added to the response), `show` (name of a request header; the
response carries its value in `X-Shown`).
"""

from __future__ import annotations

import os
import time

from flask import Response, abort, request
from sample import app

held: list[bytes] = []


def has_changed() -> bool:
    """Whether the time that the argument `from` names has come."""
    return time.time() > float(request.args.get("from", "inf"))


@app.before_request
def misbehave() -> None:
    """Sleep, compute, allocate, die or fail, as the arguments ask."""
    arguments = request.args
    if "sleep" in arguments:
        time.sleep(float(arguments["sleep"]))
    if "compute" in arguments:
        end = time.thread_time() + float(arguments["compute"])
        while time.thread_time() < end:
            pass
    if "allocate" in arguments:
        bytearray(b"x") * int(arguments["allocate"])
    if "hold" in arguments:
        held.append(b"x" * int(arguments["hold"]))
    if "size" in arguments:
        abort(Response(b"x" * int(arguments["size"])))
    if "die" in arguments:
        os.kill(os.getpid(), int(arguments["die"]))
    if has_changed():
        abort(Response("from now on", status=int(arguments["then"])))
    if "status" in arguments:
        abort(Response("as asked", status=int(arguments["status"])))


@app.after_request
def set_header(response: Response) -> Response:
    """Set the headers that the arguments ask for."""
    if "header" in request.args and not has_changed():
        name, _, value = request.args["header"].partition("=")
        response.headers[name] = value
    if "show" in request.args:
        response.headers["X-Shown"] = request.headers.get(request.args["show"], "")
    return response
