"""The app of faulty.py, with requests that last until the test lets them go.

`?gate=PATH` holds a request for as long as that file exists.
"""

import time
from pathlib import Path

from faulty import app
from flask import request


@app.before_request
def wait_at_gate() -> None:
    """Wait until the gate is gone."""
    gate = request.args.get("gate")
    while gate and Path(gate).exists():
        time.sleep(0.01)
