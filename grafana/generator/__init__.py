"""The dashboards as Python; `python3 grafana/generate.py` writes their JSON."""
