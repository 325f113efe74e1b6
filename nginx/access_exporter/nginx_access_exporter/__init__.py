"""Exports what nginx's access metrics log says, by route, to Prometheus: docs/nginx-metrics.md."""

__version__ = "0.1.0"
