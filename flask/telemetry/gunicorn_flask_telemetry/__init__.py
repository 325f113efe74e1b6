"""Prometheus metrics of gunicorn's workers and of a Flask application, and JSON logs: README.md."""

try:
    # hatch_build.py writes this module into the wheel.
    from gunicorn_flask_telemetry._revision import REVISION
except ImportError:  # used from a source tree
    REVISION = "unknown"

__version__ = "0.1.0"
