"""The dashboards as Python; `python grafana/generate.py` writes their JSON."""
