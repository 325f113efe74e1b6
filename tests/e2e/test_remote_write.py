"""Two stacks that write to one store: examples/remote-write, with a second Prometheus as the store.

The store has the stacks' rules and dashboards. What it shows of one stack must be what that stack's
own Prometheus shows, and a fault of one must not touch the other.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from local.settings import BIN, ROOT, environment, settings
from tests.e2e.test_dashboards import DASHBOARDS, prepared
from tests.load import Load
from tests.servers import running
from tests.stacks import LocalStack, free_port, launch, wait_until

EXAMPLE = ROOT / "examples" / "remote-write"
REGION = "north"
# Seconds until figures agree: traffic must have been steady for the windows of rules, which on a
# busy machine it is not at once.
WITHIN = 400
AVERAGED = "20s:5s"
QUERIES = sorted(
    {
        target["expr"]
        for dashboard in DASHBOARDS.values()
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
)
# What each Prometheus knows of itself (alerts, its own rules and series), and numbers in words.
OWN = ("ALERTS", "prometheus_", "vector(1)", "count_values")
# What is interpolated in buckets, and the small difference of two sums.
JUMPY = ("quantile", "p50_", "p95_", "p99_", "by (le)", "> 0.0001")

COMPARED = [each for each in QUERIES if not any(name in each for name in OWN + JUMPY)]
ENOUGH = 100  # figures

Samples = dict[frozenset[tuple[str, str]], float]


class Store:
    """A Prometheus that takes what others write to it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder

    @contextlib.contextmanager
    def running(self) -> Iterator[Store]:
        config = yaml.safe_load((EXAMPLE / "store.yml").read_text())
        config["rule_files"] = [str(ROOT / "prometheus" / "rules" / "*.yml")]
        config.pop("alerting")
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{self.port}"]
        (self.folder / "store.yml").write_text(yaml.safe_dump(config))
        options = [
            f"--config.file={self.folder / 'store.yml'}",
            f"--storage.tsdb.path={self.folder / 'store'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-remote-write-receiver",
            "--log.level=warn",
        ]
        env = environment(settings(), self.folder)
        with running([BIN / "prometheus", *options], f"{self.url}/-/ready", 30, env=env):
            yield self


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Store, LocalStack, LocalStack]]:
    """A store, and the stacks "a" and "b" that write to it, with steady traffic."""
    folder = tmp_path_factory.mktemp("remote-write")
    store = Store(folder)
    text = (EXAMPLE / "prometheus.yml").read_text()
    (folder / "writing.yml").write_text(text.replace("http://store.example:9090", store.url))
    given = {"PROMETHEUS_CONFIG": str(folder / "writing.yml"), "STACK_REGION": REGION}
    with (
        store.running(),
        launch("local", given | {"STACK_NAME": "a"}) as first,
        launch("local", given | {"STACK_NAME": "b"}) as second,
    ):
        assert isinstance(first, LocalStack)
        assert isinstance(second, LocalStack)
        with steady(first, second):
            yield store, first, second


def asked(url: str, expression: str, at: float) -> Samples:
    """The vector of an expression, averaged over a while; NaN counts as no sample."""
    parameters = {"query": f"avg_over_time(({expression})[{AVERAGED}])", "time": str(at)}
    answer = requests.get(f"{url}/api/v1/query", params=parameters, timeout=30).json()
    assert answer["status"] == "success", answer
    return {
        frozenset(labels(sample["metric"]).items()): float(sample["value"][1])
        for sample in answer["data"]["result"]
        if not math.isnan(float(sample["value"][1]))
    }


def labels(metric: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in metric.items() if name not in ("stack", "region")}


def filled(expression: str, stack: str) -> str:
    """PromQL with values for Grafana's variables."""
    return prepared(expression, {"$stack": stack, "$__rate_interval": "1m", "$__range": "1m"})


@contextlib.contextmanager
def steady(*stacks: LocalStack) -> Iterator[None]:
    """Traffic that does not change, to all stacks."""
    with contextlib.ExitStack() as loads:
        for stack in stacks:
            loads.enter_context(Load(f"{stack.http}/cache-me?size=200", 10))
            loads.enter_context(Load(f"{stack.http}/?sleep=0.02&size=200", 10))
        yield


def differs(own: float, stored: float) -> bool:
    return not math.isclose(own, stored, rel_tol=0.05, abs_tol=0.05)


def firing(store: Store) -> set[tuple[str, str]]:
    """The name and the stack of each alert that fires, without the one that always does."""
    query = 'ALERTS{alertstate="firing", alertname!="Watchdog"}'
    answer = requests.get(f"{store.url}/api/v1/query", params={"query": query}, timeout=30).json()
    return {
        (each["metric"]["alertname"], each["metric"].get("stack", ""))
        for each in answer["data"]["result"]
    }


def test_store_has_each_series_once_without_the_addresses_of_links(
    pair: tuple[Store, LocalStack, LocalStack],
) -> None:
    store, *_ = pair
    url = f"{store.url}/api/v1/series"
    wait_until(
        lambda: (
            len(requests.get(url, {"match[]": "up{job='flask-app'}"}, timeout=9).json()["data"])
            == 2
        ),
        30,
        "both stacks' series",
    )
    found = requests.get(url, {"match[]": '{region="north"}'}, timeout=30).json()["data"]
    assert {each["stack"] for each in found} == {"a", "b"}
    assert not [each for each in found if any(name.endswith("_url") for name in each)]
    assert not [each for each in found if ":" in each["__name__"] and "stack:" in each["__name__"]]


def test_dashboards_show_the_same_of_a_stack_in_the_store(
    pair: tuple[Store, LocalStack, LocalStack],
) -> None:
    store, first, _ = pair
    different: dict[tuple[str, Any], tuple[float, float]] = {}

    def agree() -> bool:
        different.clear()
        at = time.time() - 3
        compared = 0
        for query in COMPARED:
            own = asked(first.prometheus, filled(query, ".*"), at)
            stored = asked(store.url, filled(query, "a"), at)
            compared += len(own)
            for name in own.keys() | stored.keys():
                figures = own.get(name, math.inf), stored.get(name, math.inf)
                if differs(*figures):
                    different[query, name] = figures
        return compared > ENOUGH and not different

    try:
        wait_until(agree, WITHIN, "the same figures")
    except AssertionError as error:
        for (query, name), figures in different.items():
            error.add_note(f"{query[:150]} {dict(name)} {figures}")
        raise


def test_fault_of_one_stack_does_not_touch_the_other(
    pair: tuple[Store, LocalStack, LocalStack],
) -> None:
    store, _, second = pair

    def steady_in_a() -> bool:
        """Whether the store shows the requests that the clients of "a" send."""
        shown = asked(store.url, 'sum(cache_status:nginx_requests:rate1m{stack="a"})', time.time())
        return bool(shown) and all(math.isclose(20, each, rel_tol=0.05) for each in shown.values())

    wait_until(steady_in_a, WITHIN, "the figures of a")
    earlier = firing(store)
    second.stop("flask-app")
    wait_until(lambda: ("UpstreamDown", "b") in firing(store), WITHIN, "the alert of b")
    # Without a stack: what the store says of itself, as that it has no Alertmanager here.
    assert not [each for each in firing(store) - earlier if each[1] not in ("b", "")]
    wait_until(steady_in_a, WITHIN, "the figures of a")
