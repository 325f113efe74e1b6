"""Measures the requests of one worker process, from gunicorn's pre_request and post_request hooks.

These two enclose everything a thread does for a request, are called for every worker class, and
cost less than functions that Flask calls.
"""

import errno
import logging
import sys
import threading
import time
from collections.abc import Mapping
from http import HTTPMethod
from pathlib import Path
from typing import Any

from gunicorn.http.message import Request
from gunicorn.http.wsgi import Response
from gunicorn.workers.base import Worker

from gunicorn_flask_telemetry.forwarded import drop_untrusted
from gunicorn_flask_telemetry.histogram import Histogram, HistogramFile
from gunicorn_flask_telemetry.logs import RequestLog
from gunicorn_flask_telemetry.slots import REQUESTS, Slot

# Where a Flask application leaves the route in the WSGI environ; None: not to be counted.
ROUTE_KEY = "gunicorn_flask_telemetry.route"
METHODS = frozenset(method.value for method in HTTPMethod)
# A request that waited longer was given up by any proxy: its start is not to be believed.
LONGEST_QUEUE_SECONDS = 600
# Of the OSError that a client causes by leaving.
CLIENT_LEFT = {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN}


class _Thread(threading.local):
    """What the calling thread is at."""

    offset = 0  # of its floats in the slot; 0 until its first request
    started = 0.0  # monotonic
    started_at = 0.0  # Unix time


class Recorder:
    """Counts the requests of one worker into its slot, its histograms and its log."""

    def __init__(self, worker: Worker, slot: Slot, directory: Path) -> None:
        """Make the recorder of `worker`, in its own process."""
        self._slot = slot
        self._values = slot.values
        self._thread = _Thread()
        allowed = worker.cfg.forwarded_allow_ips
        self._allowed = None if "*" in allowed else tuple(allowed)
        self._log = RequestLog() if worker.log.error_log.isEnabledFor(logging.INFO) else None
        self._file = HistogramFile(directory / f"histogram_requests_{slot.number}.db")
        self._durations: dict[tuple[str, str, int], Histogram] = {}
        self._queue_durations = self._file.histogram(
            "gunicorn_request_queue_duration_seconds",
            "From the proxy passing a request on (X-Request-Start) to a worker starting on it",
            {},
        )

    def begin(self, request: Request) -> None:
        """Note that the calling thread starts on a request."""
        if self._allowed is not None:
            drop_untrusted(request, self._allowed)
        thread = self._thread
        offset = thread.offset
        if not offset:
            offset = thread.offset = self._slot.next_thread()
        thread.started_at = time.time()
        thread.started = started = time.monotonic()
        # Below zero while a request runs: one float, written whole, says how long and whether.
        self._values[offset] -= started

    def end(self, request: Request, environ: Mapping[str, Any], response: Response | None) -> None:
        """Note that the calling thread is done with the request, and count it."""
        thread = self._thread
        offset = thread.offset
        if not offset or self._values[offset] >= 0:
            return  # never begun: another pre_request hook refused it
        try:
            self._count(request, environ, response, time.monotonic() - thread.started)
        finally:
            # Last, so that where no request is in flight each one is counted.
            self._values[offset] += time.monotonic()

    def _count(
        self,
        request: Request,
        environ: Mapping[str, Any],
        response: Response | None,
        duration: float,
    ) -> None:
        route = environ.get(ROUTE_KEY, "")
        if route is None:
            return
        thread, status = self._thread, _status(response)
        if route:
            self._observe_duration(request.method, route, status, duration)
        started_at = thread.started_at
        if proxied := environ.get("HTTP_X_REQUEST_START"):
            self._observe_queue(proxied, started_at)
        self._values[thread.offset + REQUESTS] += 1
        if self._log:
            request_id = environ.get("HTTP_X_REQUEST_ID")
            method, path = request.method, request.path
            slot = self._slot.number
            self._log.write((started_at, request_id, method, path, route, status, duration, slot))

    def _observe_duration(self, method: str, route: str, status: int, seconds: float) -> None:
        if method not in METHODS:
            method = "OTHER"
        key = (method, route, status)
        histogram = self._durations.get(key)
        if histogram is None:
            # Named and described as by prometheus-flask-exporter.
            histogram = self._durations[key] = self._file.histogram(
                "flask_http_request_duration_seconds",
                "Flask HTTP request duration in seconds",
                {"method": method, "route": route, "status": str(status)},
            )
        histogram.observe(seconds)

    def _observe_queue(self, proxied: str, started_at: float) -> None:
        """Count the time since nginx's $msec, unless it is no time, in the future, or absurd."""
        try:
            seconds = started_at - float(proxied)
        except ValueError:
            return
        if 0 <= seconds <= LONGEST_QUEUE_SECONDS:
            self._queue_durations.observe(seconds)


def _status(response: Response | None) -> int:
    """Return the status that the client was sent, or would have been, had it stayed."""
    if response is None or response.status is None:
        return 500
    if not response.headers_sent and getattr(sys.exception(), "errno", None) not in CLIENT_LEFT:
        return 500
    return response.status_code
