"""The dashboards' variables: the choices above the panels, and hidden ones."""

from typing import Any

from generator.scope import of_chosen_stack
from generator.targets import DATASOURCE

Variable = dict[str, Any]


def choice(name: str, label: str, description: str, query: str, all_values: str = ".+") -> Variable:
    """A choice of one or more label values that Prometheus knows."""
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
        "allValue": all_values,
        "current": {"text": "All", "value": "$__all"},
        "options": [],
        "hide": 0,
    }


def address(name: str) -> Variable:
    """A hidden variable for links: an address that Prometheus was started with.

    The alert Watchdog always fires and has the addresses as labels. After a restart with other
    ports, the newest one counts.
    """
    query = 'query_result(topk(1, timestamp(ALERTS{alertname="Watchdog"})))'
    return {
        "type": "query",
        "name": name,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "regex": f'/{name}_url="([^"]+)"/',
        "refresh": 2,
        "current": {},
        "options": [],
        "hide": 2,
    }


def busiest(name: str, weight: str, current: str) -> Variable:
    """A hidden variable: the eight routes with the highest rate over the whole time range.

    Panels draw these routes and "other", so that all panels show the same routes from the
    beginning of the time range to its end.

    Args:
        name: of the variable.
        weight: a recorded rate or increase by route.
        current: a recorded rate by route, for routes whose `weight` is missing or 0 so far.
    """
    total = f"sum by (route) (sum_over_time({weight}[$__range]) > 0 or {current})"
    query = f"query_result({of_chosen_stack(f'topk(8, {total} > 0)')})"
    return {
        "type": "query",
        "name": name,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "regex": '/route="([^"]+)"/',
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
        "options": [],
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

STACK = choice(
    "stack",
    "Stack",
    "Stacks whose Prometheus writes to this store; in a stack's own Prometheus there is only All.",
    "label_values(stack:known, stack)",
    all_values=".*",
)

INSTANCE = choice(
    "instance",
    "Instance",
    "Replicas of flask-app. nginx's metrics always cover all replicas together.",
    f"label_values({of_chosen_stack('gunicorn_workers')}, instance)",
)

ROUTES = choice(
    "route",
    "Route",
    "Flask's URL rules, as seen in nginx's metrics.",
    f"label_values({of_chosen_stack('nginx_route_requests_total')}, route)",
)

# "All" stays available although one route is meant: without it, Grafana would not escape the value
# for a regular expression, and URL rules may contain characters that need it.
ONE_ROUTE = ROUTES | {"multi": False}

ADDRESSES = [address(name) for name in ("prometheus", "alertmanager", "runbooks")]

BUSIEST = [
    # The rule of the first is evaluated once a minute: a sum of rates over a week takes a second.
    busiest("busiest", "route:nginx_requests:increase1m", "route:nginx_requests:rate1m"),
    busiest("cached", *["route:nginx_cache_lookups:rate5m"] * 2),
]
