"""The dashboards as Python: `python grafana/build.py` writes their JSON to grafana/dashboards/."""
