"""Exports nginx's requests by route and cache status to Prometheus: see README.md."""

__version__ = "0.1.0"
