"""Gunicorn's settings, each from an environment variable with a default.

An invalid value stops the start. Gunicorn's own reference explains what the settings do.
"""

import os
from collections.abc import Collection

from gunicorn_flask_telemetry.hooks import *  # noqa: F403  the metrics and the JSON logs


def text(name: str, default: str, allowed: Collection[str] = ()) -> str:
    """Return the variable, where empty counts as unset; exit where it is not `allowed`."""
    value = os.environ.get(name) or default
    if allowed and value not in allowed:
        raise SystemExit(f"{name}={value!r}: must be one of {', '.join(allowed)}")
    return value


def number(name: str, default: int, least: int, most: int = 2**31 - 1) -> int:
    """Return the variable as a whole number; exit where it is none, or outside the bounds."""
    value = text(name, str(default))
    if not (value.isascii() and value.isdigit() and least <= int(value) <= most):
        raise SystemExit(f"{name}={value!r}: must be a whole number from {least} to {most}")
    return int(value)


wsgi_app = text("WSGI_APP", "wsgi:app")
bind = text("GUNICORN_BIND", "0.0.0.0:8000")

workers = number("GUNICORN_WORKERS", 3, least=1, most=64)
worker_class = text("GUNICORN_WORKER_CLASS", "gthread", allowed=("gthread", "sync"))
if worker_class == "gthread":
    worker_class = "workers.FreeThreadWorker"  # which says what is wrong with gthread as it comes
    threads = number("GUNICORN_THREADS", 4, least=1)
    # The number above the threads is that of idle connections a worker keeps open. More of them
    # would save no time, and let more requests come to a worker whose threads are all busy.
    worker_connections = threads + max(1, threads // 2)
preload_app = text("GUNICORN_PRELOAD_APP", "false", allowed=("true", "false")) == "true"

timeout = number("GUNICORN_TIMEOUT", 60, least=0)  # seconds, as are all times here
graceful_timeout = number("GUNICORN_GRACEFUL_TIMEOUT", 30, least=1)
keepalive = number("GUNICORN_KEEPALIVE", 75, least=0)  # nginx's is 60: nginx is to close first
max_requests = number("GUNICORN_MAX_REQUESTS", 0, least=0)  # 0: a worker is never recycled
max_requests_jitter = number("GUNICORN_MAX_REQUESTS_JITTER", max_requests // 10, least=0)
backlog = number("GUNICORN_BACKLOG", 2048, least=1)

loglevel = text("GUNICORN_LOG_LEVEL", "info", allowed=("debug", "info", "warning", "error"))
# The heartbeat of a worker must not wait for a disk.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
# The control socket is a thread in the arbiter, stopped and started again around every fork, and
# tells neither load nor exits. Nothing here asks it.
control_socket_disable = True
