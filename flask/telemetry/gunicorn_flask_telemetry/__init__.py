"""Metrics and JSON logs of a Flask application under gunicorn: docs/gunicorn-metrics.md."""

__version__ = "0.1.0"
