"""gunicorn's settings. gunicorn_settings.py reads those that environment variables can change.

gunicorn's own reference explains what the settings do.
"""

import os
import sys

from gunicorn.arbiter import Arbiter

from gunicorn_flask_telemetry import hooks
from gunicorn_flask_telemetry.hooks import *  # noqa: F403  the metrics and the JSON logs

# gunicorn may run in the folder of another application, which must not find the sample's modules.
# So this folder is searched only for these two, whose names no application is likely to use.
sys.path.append(os.path.dirname(__file__))  # noqa: PTH120
import gunicorn_workers  # also the worker class
from gunicorn_settings import read

sys.path.pop()

_settings, _problems = read(os.environ)
if _problems:
    raise SystemExit("\n".join(_problems))
globals().update(_settings)  # gunicorn reads the names of this module

# The heartbeat of a worker must not wait for a disk.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
# The control socket is a thread in the arbiter, stopped and restarted around each fork. It shows
# neither load nor exits, and nothing here asks it.
control_socket_disable = True


def when_ready(server: Arbiter) -> None:
    """Start the metrics server, and prepare the stop."""
    hooks.when_ready(server)
    gunicorn_workers.drain_before_stop(server)
