"""gunicorn's settings. gunicorn_settings.py reads those that environment variables can change.

gunicorn's own reference explains what the settings do.
"""

import os

from gunicorn_settings import read

from gunicorn_flask_telemetry.hooks import *  # noqa: F403  the metrics and the JSON logs

_settings, _problems = read(os.environ)
if _problems:
    raise SystemExit("\n".join(_problems))
globals().update(_settings)  # gunicorn reads the names of this module

# The heartbeat of a worker must not wait for a disk.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
# The control socket is a thread in the arbiter, stopped and restarted around each fork. It shows
# neither load nor exits, and nothing here asks it.
control_socket_disable = True
