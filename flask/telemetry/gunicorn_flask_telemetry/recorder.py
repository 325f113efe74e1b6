"""Measures the requests of one worker process, from gunicorn's pre_request and post_request hooks.

These two hooks enclose everything that a thread does for a request, run for every worker class,
and cost less than functions that Flask calls.
"""

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from gunicorn.http.message import Request
from gunicorn.http.wsgi import Response
from gunicorn.workers.base import Worker
from prometheus_client import Counter, Histogram

from gunicorn_flask_telemetry.forwarded import drop_untrusted
from gunicorn_flask_telemetry.logs import RequestLog
from gunicorn_flask_telemetry.shedding import CLIENT_LEFT, SHED_KEY
from gunicorn_flask_telemetry.slots import REQUESTS, Slot

# The key under which FlaskMetrics leaves the route in the WSGI environ; None: do not count it.
ROUTE_KEY = "gunicorn_flask_telemetry.route"
METHODS = frozenset(method.value for method in HTTPMethod)
# In seconds, as for all latencies of this project; nginx logs milliseconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# In seconds: how long the proxy waits for an answer. It has given up a request that waited longer,
# so the start time of such a request must be wrong.
PROXY_TIMEOUT_VARIABLE, DEFAULT_PROXY_TIMEOUT = "GUNICORN_PROXY_TIMEOUT", 600
INTERNAL_SERVER_ERROR = 500
# The errors that a client causes by closing its connection.
CLIENT_LEFT_ERRORS = {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN}


class _Thread(threading.local):
    """The state of the calling thread."""

    offset = 0  # of its floats in the slot; 0 until its first request
    started = 0.0  # monotonic
    started_at = 0.0  # Unix time


class Recorder:
    """Counts the requests of one worker in its slot and its histograms, and logs them."""

    def __init__(self, worker: Worker, slot: Slot) -> None:
        """Make the recorder of `worker`; called in the worker's own process."""
        self._slot = slot
        self._values = slot.values
        self._thread = _Thread()
        allowed = worker.cfg.forwarded_allow_ips
        self._allowed = None if "*" in allowed else tuple(allowed)
        self._log = RequestLog() if worker.log.error_log.isEnabledFor(logging.INFO) else None
        # Named and described as by prometheus-flask-exporter. In no registry: the metrics server
        # reads the files.
        self._durations = Histogram(
            "flask_http_request_duration_seconds",
            "Flask HTTP request duration in seconds",
            ("method", "route", "status"),
            buckets=BUCKETS,
            registry=None,
        )
        self._duration_by_labels: dict[tuple[str, str, int], Histogram] = {}
        # FlaskMetrics counts the exceptions before a response, under this name and with status 500.
        self._exceptions = Counter(
            "flask_http_request_exceptions_total",
            "Total number of HTTP requests which resulted in an exception",
            ("method", "status"),
            registry=None,
        )
        self._queue_durations = Histogram(
            "gunicorn_request_queue_duration_seconds",
            "From the proxy passing a request on (X-Request-Start) to a worker starting on it",
            buckets=BUCKETS,
            registry=None,
        )
        self._longest_queue = float(os.environ.get(PROXY_TIMEOUT_VARIABLE) or DEFAULT_PROXY_TIMEOUT)
        self._wrong_starts = Counter(
            "gunicorn_request_start_errors_total",
            "Requests whose X-Request-Start cannot be right",
            registry=None,
        )
        self._shed = Counter(
            "gunicorn_requests_shed_total",
            "Requests that a worker did not pass to the application",
            ("route", "reason"),
            registry=None,
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
        # Negative while a request runs: this one float says whether it runs, and since when.
        self._values[offset] -= started

    def end(self, request: Request, environ: Mapping[str, Any], response: Response | None) -> None:
        """Note that the calling thread has finished the request, and count it."""
        thread = self._thread
        offset = thread.offset
        if not offset or self._values[offset] >= 0:
            return  # begin() was never called: another pre_request hook refused the request
        try:
            self._count(request, environ, response, time.monotonic() - thread.started)
        finally:
            # Last: when no request is in flight, every request has been counted.
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
        shed = environ.get(SHED_KEY)
        if shed:
            self._shed.labels(route, shed).inc()
        elif route:
            method = request.method if request.method in METHODS else "OTHER"
            self._observe_duration(method, route, status, duration)
            if _is_cut_off(response) and status != INTERNAL_SERVER_ERROR:
                self._exceptions.labels(method, status).inc()
        started_at = thread.started_at
        if proxied := environ.get("HTTP_X_REQUEST_START"):
            self._observe_queue(proxied, started_at, given_up=shed == CLIENT_LEFT)
        self._values[thread.offset + REQUESTS] += 1
        if self._log:
            request_id = environ.get("HTTP_X_REQUEST_ID")
            method, path = request.method, request.path
            slot = self._slot.number
            fields = (started_at, request_id, method, path, route, status, duration, slot, shed)
            self._log.write(fields)

    def _observe_duration(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method, route, status)
        histogram = self._duration_by_labels.get(key)  # Histogram.labels() takes a lock
        if histogram is None:
            histogram = self._duration_by_labels[key] = self._durations.labels(*key)
        histogram.observe(seconds)

    def _observe_queue(self, proxied: str, started_at: float, *, given_up: bool) -> None:
        """Count the time since nginx's $msec, or an error if that time cannot be right."""
        try:
            seconds = started_at - float(proxied)
        except ValueError:
            seconds = -1.0
        if 0 <= seconds <= self._longest_queue:
            self._queue_durations.observe(seconds)
        elif not given_up:  # else it may have waited longer than the proxy did
            self._wrong_starts.inc()


def _status(response: Response | None) -> int:
    """Return the status that the client got, or would have got if it had stayed connected."""
    if response is None or response.status is None:
        return INTERNAL_SERVER_ERROR
    if not response.headers_sent and not _client_left(sys.exception()):
        return INTERNAL_SERVER_ERROR
    return response.status_code


def _is_cut_off(response: Response | None) -> bool:
    """Return whether the application raised an exception after it began to send its response."""
    error = sys.exception()
    return bool(error and response and response.headers_sent and not _client_left(error))


def _client_left(error: BaseException | None) -> bool:
    return getattr(error, "errno", None) in CLIENT_LEFT_ERRORS
