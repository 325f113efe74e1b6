"""What can be chosen above the panels."""

from typing import Any

from generator.targets import DATASOURCE

Variable = dict[str, Any]


def choice(name: str, label: str, description: str, query: str) -> Variable:
    """Values that Prometheus knows, of which any number can be chosen."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "description": description,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
        "options": [],
        "hide": 0,
    }


def address(name: str, url: str) -> Variable:
    """A hidden variable for links; `?var-NAME=URL` in a dashboard's own address overrides it."""
    option = {"text": url, "value": url, "selected": True}
    return {
        "type": "textbox",
        "name": name,
        "query": url,
        "current": option,
        "options": [option],
        "hide": 2,
    }


DATA_SOURCE = {
    "type": "datasource",
    "name": "datasource",
    "label": "Data source",
    "query": "prometheus",
    "current": {"text": "Prometheus", "value": "prometheus"},
    "options": [],
    "hide": 1,
}

INSTANCE = choice(
    "instance",
    "Instance",
    "Replicas of flask-app. What nginx measures is of all of them together.",
    "label_values(gunicorn_workers, instance)",
)

ROUTES = choice(
    "route",
    "Route",
    "Flask's URL rules, as seen in nginx's metrics.",
    "label_values(nginx_route_requests_total, route)",
)

# "All" stays on offer where one value is meant: without it, Grafana would not escape the value for
# a regular expression, and URL rules may hold characters that need it.
ONE_ROUTE = ROUTES | {"multi": False}

# Where a browser on the same machine finds them with the ports of .env.
ADDRESSES = [
    address("prometheus", "http://localhost:9090"),
    address("alertmanager", "http://localhost:9093"),
]
