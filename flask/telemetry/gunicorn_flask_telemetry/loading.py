"""Reports, once and as plain text, why the application does not load, and lets gunicorn end.

gunicorn itself would log the exception as one escaped JSON line of each worker. If the application
calls sys.exit(), gunicorn would start new workers forever.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gunicorn.arbiter import Arbiter

FIRST_LINE = "The application did not load:"
LAST_LINE = "gunicorn ends: fix the application, then start again."
# The packages whose frames come before the application's in a traceback.
LOADERS = ("gunicorn", "gunicorn_flask_telemetry", "importlib", "_frozen_importlib")


def reporting(load: Callable[[], Any], reported: Path) -> Callable[[], Any]:
    """Return a function that calls `load`, reports the first failure, and ends the process on any.

    Args:
        load: loads the application, in the arbiter or in each worker.
        reported: the first process to fail makes this file; the others then stay silent.
    """

    def load_or_report() -> object:
        try:
            return load()
        except (Exception, SystemExit) as error:  # noqa: BLE001  an application may raise anything
            if not _is_first(reported):
                # A second failed worker would interrupt the arbiter's stop with an exception.
                raise SystemExit(0) from None
            sys.stderr.write(f"{FIRST_LINE}\n{_describe(error)}{LAST_LINE}\n")
            sys.stderr.flush()
            # A worker with this status makes the arbiter stop the others and end.
            raise SystemExit(Arbiter.APP_LOAD_ERROR) from None

    return load_or_report


def _is_first(reported: Path) -> bool:
    try:
        os.close(os.open(reported, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    except OSError:  # better to report it twice than not at all
        return True
    return True


def _describe(error: BaseException) -> str:
    """Return the traceback, from the application's first frame on."""
    frames = error.__traceback__
    while frames and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] in LOADERS:
        frames = frames.tb_next
    # Without frames, gunicorn raised it, and the exception that it handled says nothing more.
    return "".join(traceback.format_exception(type(error), error, frames, chain=bool(frames)))
