"""Finds requests that the application should not run, because the client left or they waited long.

The kernel says how long ago it received a request, so the clocks of the proxy and of this machine
may differ, and a request that the proxy sends again is not taken for one that waited.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

# In seconds; 0 or unset: no limit.
QUEUE_TIMEOUT_VARIABLE = "GUNICORN_QUEUE_TIMEOUT"
# The key under which FlaskMetrics leaves the reason in the WSGI environ, for the recorder.
SHED_KEY = "gunicorn_flask_telemetry.shed"
CLIENT_LEFT, QUEUE_TIMEOUT = "client_left", "queue_timeout"

# struct tcp_info of linux/tcp.h: tcpi_state, and tcpi_last_data_recv in milliseconds.
TCP_INFO_BYTES = 56
STATE, LAST_DATA_RECEIVED = 0, slice(52, 56)
ESTABLISHED = 1


def queue_timeout() -> int:
    """Return how many seconds a request may wait for a worker; 0: no limit.

    Raises:
        ValueError: GUNICORN_QUEUE_TIMEOUT is not a whole number.
    """
    value = os.environ.get(QUEUE_TIMEOUT_VARIABLE) or "0"
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{QUEUE_TIMEOUT_VARIABLE}={value!r}: must be a whole number of seconds")
    return int(value)


def reason_to_shed(environ: Mapping[str, Any], limit: int, since: float = 0) -> str | None:
    """Return why the application should not run a request, or None if it should.

    This needs a TCP connection. A client that has closed its sending side counts as one that left,
    as it does for nginx.

    Args:
        environ: the WSGI environ, before anything has read the request's body.
        limit: how many seconds the request may have waited for a worker; 0: no limit.
        since: when the application was ready, by time.monotonic(). Waiting before that does not
            count: the kernel accepts connections while gunicorn starts.
    """
    connection = environ.get("gunicorn.socket")
    if connection is None:
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:  # a Unix socket
        return None
    if info[STATE] != ESTABLISHED:
        return CLIENT_LEFT
    waited = int.from_bytes(info[LAST_DATA_RECEIVED], sys.byteorder) / 1000
    waited = min(waited, time.monotonic() - since)
    return QUEUE_TIMEOUT if limit and waited > limit else None
