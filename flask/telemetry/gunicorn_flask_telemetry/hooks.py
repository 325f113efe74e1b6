"""Gunicorn's server hooks: the one import in gunicorn.conf.py.

Gunicorn reads the names in __all__ from its configuration. A project with a hook of its own under
one of these names calls the one here from it.
"""

import os
from collections.abc import Mapping
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.http.message import Request
from gunicorn.http.wsgi import Response
from gunicorn.workers.base import Worker

from gunicorn_flask_telemetry.logs import JsonLogger as logger_class  # noqa: N813  the setting's name
from gunicorn_flask_telemetry.recorder import Recorder
from gunicorn_flask_telemetry.state import State

__all__ = [
    "child_exit",
    "logger_class",
    "nworkers_changed",
    "on_exit",
    "on_reload",
    "on_starting",
    "post_fork",
    "post_request",
    "post_worker_init",
    "pre_exec",
    "pre_fork",
    "pre_request",
    "when_ready",
    "worker_exit",
]


def nworkers_changed(server: Arbiter, new_value: int, old_value: int | None) -> None:
    """Note how many workers there should be."""
    # The first call comes before any other hook, and before a preloaded application.
    if old_value is None:
        server.telemetry = State(server.cfg)
    server.telemetry.configure(new_value, server.cfg)


def on_starting(server: Arbiter) -> None:
    """Listen for scrapes."""
    server.telemetry.listen()


def when_ready(server: Arbiter) -> None:
    """Serve metrics, now that the application's sockets are there to be looked at."""
    server.telemetry.launcher.start(server)


def on_reload(server: Arbiter) -> None:
    """Look at the new sockets, where the address changed."""
    server.telemetry.launcher.reload(server)


def pre_exec(server: Arbiter) -> None:
    """Leave the metrics to the arbiter of an upgrade (USR2)."""
    server.telemetry.hand_over(server.cfg.env_orig)


def on_exit(server: Arbiter) -> None:
    """End the metrics server."""
    server.telemetry.end(upgraded=bool(server.reexec_pid))


def pre_fork(server: Arbiter, worker: Worker) -> None:
    """Give the worker its slot."""
    worker.slot = server.telemetry.claim_slot()


def post_fork(server: Arbiter, worker: Worker) -> None:
    """Take the slot, in the worker, and let go of what belongs to the arbiter and its siblings."""
    for sibling in server.WORKERS.values():
        sibling.slot.close()
    server.telemetry.forget()
    worker.slot.occupy()
    worker.counts = server.telemetry.directory


def post_worker_init(worker: Worker) -> None:
    """Make ready to measure, now that the worker is the user it is to be."""
    worker.recorder = Recorder(worker, worker.slot, worker.counts)


def pre_request(worker: Worker, req: Request) -> None:
    """Start measuring a request."""
    worker.recorder.begin(req)


def post_request(
    worker: Worker, req: Request, environ: Mapping[str, Any], resp: Response | None
) -> None:
    """Measure a request."""
    worker.recorder.end(req, environ, resp)


def worker_exit(server: Arbiter, worker: Worker) -> None:
    """Note that a worker ends by itself."""
    if worker.pid == os.getpid():
        worker.slot.leave()
    else:  # the arbiter missed its end, and will not call child_exit
        child_exit(server, worker)


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Count the worker's exit, and free its slot."""
    server.telemetry.release_slot(worker)
