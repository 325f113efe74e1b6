"""The sample app, made slow, failing or chatty on demand. For tests only.

Any URL takes these arguments: `sleep` (seconds before the answer), `status` (answer so instead),
`header` (`Name=value`, set on the answer), `show` (name of a request's header, whose value the
answer has in `X-Shown`), `die` (number of a signal the worker sends itself).
"""

from __future__ import annotations

import os
import time

from flask import Response, abort, request
from wsgi import app


@app.before_request
def misbehave() -> None:
    """Sleep, die or fail as the arguments ask."""
    arguments = request.args
    if "sleep" in arguments:
        time.sleep(float(arguments["sleep"]))
    if "die" in arguments:
        os.kill(os.getpid(), int(arguments["die"]))
    if "status" in arguments:
        abort(Response("as asked", status=int(arguments["status"])))


@app.after_request
def set_header(response: Response) -> Response:
    """Set the headers that the arguments ask for."""
    if "header" in request.args:
        name, _, value = request.args["header"].partition("=")
        response.headers[name] = value
    if "show" in request.args:
        response.headers["X-Shown"] = request.headers.get(request.args["show"], "")
    return response
