"""Measures the requests of one worker process, from gunicorn's pre_request and post_request hooks.

These two enclose everything a thread does for a request, are called for every worker class, and
cost less than functions that Flask calls.
"""

import logging
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from gunicorn.http.message import Request
from gunicorn.http.wsgi import Response
from gunicorn.workers.base import Worker
from prometheus_client import Histogram

from telemetry.forwarded import drop_untrusted
from telemetry.logs import RequestLog
from telemetry.slots import REQUESTS, Slot

# Seconds. The same for all latencies of this project; nginx logs milliseconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# A request that waited longer was given up by any proxy: its start is not to be believed.
LONGEST_QUEUE_SECONDS = 600
# What the application leaves in the WSGI environ: its Metrics, and the endpoint that took the
# request, None where it is not to be counted.
METRICS_KEY = "telemetry.metrics"
ENDPOINT_KEY = "telemetry.endpoint"
UNMATCHED = "unmatched"


class Metrics(Protocol):
    """What an application does with its measured requests."""

    def observe(self, method: str, endpoint: str, status: int, duration: float) -> None:
        """Count a request that took `duration` seconds."""


class _Thread(threading.local):
    """What the calling thread is at."""

    offset = 0  # of its floats in the slot; 0 until its first request
    started = 0.0  # monotonic
    started_at = 0.0  # Unix time


class Recorder:
    """Counts the requests of one worker into its slot, its metrics and its log."""

    def __init__(self, worker: Worker, slot: Slot) -> None:
        """Make the recorder of `worker`, in its own process."""
        self._slot = slot
        self._values = slot.values
        self._thread = _Thread()
        self._trusted = tuple(worker.cfg.forwarded_allow_ips)
        self._log = RequestLog() if worker.log.error_log.isEnabledFor(logging.INFO) else None
        self._queue_duration = Histogram(
            "gunicorn_request_queue_duration_seconds",
            "From the proxy passing a request on (X-Request-Start) to a worker starting on it",
            buckets=BUCKETS,
        )

    def begin(self, request: Request) -> None:
        """Note that the calling thread starts on a request."""
        drop_untrusted(request, self._trusted)
        thread = self._thread
        if not thread.offset:
            thread.offset = self._slot.next_thread()
        thread.started_at = time.time()
        thread.started = started = time.monotonic()
        # Below zero while a request runs: one float, written whole, says how long and whether.
        self._values[thread.offset] -= started

    def end(self, request: Request, environ: Mapping[str, Any], response: Response | None) -> None:
        """Note that the calling thread is done with the request, and count it."""
        thread = self._thread
        ended = time.monotonic()
        self._values[thread.offset] += ended
        endpoint = environ.get(ENDPOINT_KEY, UNMATCHED)
        if endpoint is None:
            return
        self._values[thread.offset + REQUESTS] += 1
        status, duration = _status(response), ended - thread.started
        metrics: Metrics | None = environ.get(METRICS_KEY)
        if metrics:
            metrics.observe(request.method, endpoint, status, duration)
        if proxied := environ.get("HTTP_X_REQUEST_START"):
            self._observe_queue(proxied, thread.started_at)
        if self._log:
            self._log.write(
                thread.started_at,
                environ.get("HTTP_X_REQUEST_ID"),
                request.method,
                request.path,
                endpoint,
                status,
                duration,
                self._slot.number,
            )

    def _observe_queue(self, proxied: str, started_at: float) -> None:
        """Count the time since nginx's $msec, unless it is no time, in the future, or absurd."""
        try:
            seconds = started_at - float(proxied)
        except ValueError:
            return
        if 0 <= seconds <= LONGEST_QUEUE_SECONDS:
            self._queue_duration.observe(seconds)


def _status(response: Response | None) -> int:
    """Return the status that the client was sent, or would have been, had it stayed."""
    if response is None:
        return 500
    if not response.headers_sent and not isinstance(sys.exception(), OSError):
        return 500
    return response.status_code
