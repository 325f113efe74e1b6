"""gunicorn's server hooks: the one import that gunicorn.conf.py needs.

gunicorn reads the names in __all__ from its configuration. If a project has a hook of its own under
one of these names, that hook must call the one here.
"""

import os
from collections.abc import Mapping
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.http.message import Request
from gunicorn.http.wsgi import Response
from gunicorn.workers.base import Worker

from gunicorn_flask_telemetry.loading import reporting
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
    """Note how many workers are configured."""
    # gunicorn calls this hook first of all, before it loads a preloaded application.
    if old_value is None:
        server.telemetry = State(server.cfg)
        if not server.cfg.reload:  # gunicorn's development mode shows the error and waits
            server.app.load = reporting(server.app.load, server.telemetry.load_failure)
    server.telemetry.configure(new_value, server.cfg)


def on_starting(server: Arbiter) -> None:
    """Listen for scrapes."""
    server.telemetry.listen()


def when_ready(server: Arbiter) -> None:
    """Start the metrics server, which needs the application's listening sockets."""
    server.telemetry.launcher.start(server)


def on_reload(server: Arbiter) -> None:
    """Follow the listening sockets if their address has changed."""
    server.telemetry.launcher.reload(server)


def pre_exec(server: Arbiter) -> None:
    """Refuse an upgrade by USR2; called in the process that would become the second arbiter."""
    server.log.error(
        "USR2 refused: two arbiters cannot serve metrics on one port. To load new code, send HUP "
        "or restart gunicorn"
    )
    os._exit(1)


def on_exit(server: Arbiter) -> None:
    """End the metrics server."""
    server.telemetry.launcher.stop()


def pre_fork(server: Arbiter, worker: Worker) -> None:
    """Give the worker its slot."""
    worker.slot = server.telemetry.claim_slot(server)


def post_fork(server: Arbiter, worker: Worker) -> None:
    """Take the slot, in the worker, and close what belongs to the arbiter and to other workers."""
    for sibling in server.WORKERS.values():
        sibling.slot.close()
    server.telemetry.forget()
    worker.slot.occupy()


def post_worker_init(worker: Worker) -> None:
    """Prepare to measure, now that the worker runs as its own user."""
    worker.recorder = Recorder(worker, worker.slot)


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
    else:  # called in the arbiter, which missed the worker's end and will not call child_exit
        child_exit(server, worker)


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Count the worker's exit, and free its slot."""
    server.telemetry.release_slot(worker)
