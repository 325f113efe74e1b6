"""The queries of ./stack top agree with the dashboards': compared by promtool, and by name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from generator.overview import overview
from generator.scope import of_chosen_stack
from generator.signals import routes, top
from local.settings import ROOT
from local.top.options import SORTS, WINDOWS
from local.top.snapshot import COLUMNS, HEADLINE, HISTORY, expressions

RULES = [str(ROOT / "prometheus" / "rules" / name) for name in ("nginx.yml", "gunicorn.yml")]
NGINX = 'job="nginx-access-exporter", instance="n"'
FLASK = 'job="flask-app", instance="f"'
REQUESTS = f"nginx_route_requests_total{{{NGINX}"
BUCKETS = f'nginx_route_request_duration_seconds_bucket{{{NGINX}, route="/a", cache="HIT"'
INCOMPLETE = f"nginx_route_incomplete_responses_total{{{NGINX}"
SERIES = {
    f"up{{{NGINX}}}": "1x200",
    f"up{{{FLASK}}}": "1x200",
    f'{REQUESTS}, route="/a", status="200", cache="HIT"}}': "0+30x200",
    f'{REQUESTS}, route="/a", status="200", cache="MISS"}}': "0+10x200",
    f'{REQUESTS}, route="/a", status="200", cache="STALE"}}': "0+2x200",
    f'{REQUESTS}, route="/a", status="200", cache="REVALIDATED"}}': "0+3x200",
    f'{REQUESTS}, route="/b", status="200", cache="NONE"}}': "0+20x200",
    # Appears with a value, some minutes before the evaluation.
    f'{REQUESTS}, route="/b", status="500", cache="NONE"}}': "_x90 7+5x110",
    # Requests that nginx refused and responses that clients broke off are not errors. Responses
    # that Flask cut off are errors.
    f'{REQUESTS}, route="none", status="501", cache="NONE"}}': "0+4x200",
    f'{REQUESTS}, route="none", status="502", cache="NONE"}}': "0+6x200",
    f'{INCOMPLETE}, route="/a", cache="MISS", cause="upstream"}}': "0+2x200",
    f'{INCOMPLETE}, route="/a", cache="MISS", cause="client"}}': "0+3x200",
    f'{BUCKETS}, le="0.001"}}': "0+20x200",
    f'{BUCKETS}, le="0.5"}}': "0+29x200",
    f'{BUCKETS}, le="+Inf"}}': "0+30x200",
    f"gunicorn_workers_configured{{{FLASK}}}": "2x200",
    f"gunicorn_worker_threads{{{FLASK}}}": "4x200",
    **{
        f'gunicorn_worker_{name}{{{FLASK}, worker="{worker}"}}': values
        for worker, busy in (("1", "0+15x200"), ("2", "0+1x200"))
        for name, values in (("busy_seconds_total", busy), ("start_time_seconds", "1x200"))
    },
}
# The labels to match by, the recorded rule, and the query of top for the same figure.
PAIRS = [
    ("route", "route:nginx_requests:rate5m", routes.requests("5m")),
    ("route", "route:nginx_errors:ratio_rate5m", routes.error_ratio("5m")),
    ("", "job:nginx_errors:ratio_rate5m", top.overall_error_ratio("5m")),
    ("route", "route:nginx_cache_hit:ratio_rate5m", routes.hit_ratio("5m")),
    ("route", "route:nginx_request_duration_seconds:p95_rate5m", routes.p95("", "5m")),
    ("instance", "instance:gunicorn_worker_utilisation:ratio_rate5m", top.utilisation("5m")),
    (
        "instance, worker",
        "instance_worker:gunicorn_worker_utilisation:ratio_rate1m",
        top.worker_utilisation("1m"),
    ),
]
EXPECTED = {
    "route": ['{route="/a"}', '{route="/b"}', '{route="none"}'],
    "": ["{}"],
    "instance": ['{instance="f"}'],
    "instance, worker": ['{instance="f", worker="1"}', '{instance="f", worker="2"}'],
}


@pytest.mark.parametrize(("labels", "recorded", "asked"), PAIRS)
def test_a_figure_equals_the_recorded_rule(
    labels: str, recorded: str, asked: str, tmp_path: Path
) -> None:
    expected = EXPECTED[labels]
    if "cache_hit" in recorded or "duration" in recorded:
        expected = expected[:1]  # the others have no cache, and no histogram here
    difference = f"round(({asked}) - on ({labels}) {recorded}, 1e-9)"
    test = {
        "rule_files": RULES,
        "evaluation_interval": "5s",
        "tests": [
            {
                "interval": "5s",
                "input_series": [
                    {"series": series, "values": values} for series, values in SERIES.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": difference,
                        "eval_time": "10m",
                        "exp_samples": [{"labels": each, "value": 0} for each in expected],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("window", WINDOWS)
def test_no_variable_of_grafana_is_left_in_a_query(window: str) -> None:
    for name, expression in expressions(window).items():
        assert "$" not in expression, name


@pytest.mark.parametrize("window", WINDOWS)
def test_the_window_is_in_every_rate(window: str) -> None:
    for name, expression in expressions(window).items():
        windows = set(re.findall(r"\[(\d+[smh])", expression))
        # A worker counts as stuck after half a minute, whatever the window is.
        assert windows <= ({"30s"} if name == "worker state" else {window}), name


def test_every_column_can_be_sorted_by() -> None:
    assert len(SORTS) == 1 + len(COLUMNS)
    assert HISTORY.keys() == set(WINDOWS)


@pytest.mark.parametrize(
    "name", ["error_ratio", "cache_hit_ratio", "worker_utilisation", "alerts_firing"]
)
def test_the_top_line_has_the_limits_of_the_overview(name: str) -> None:
    stats = [panel for panel in overview()["panels"] if panel["type"] == "stat"]
    limit = HEADLINE[name].limit
    assert limit is not None
    shown = of_chosen_stack(limit.expr)
    assert any(shown in target["expr"] for panel in stats for target in panel["targets"])


def test_the_slowest_route_is_compared_with_its_own_limit() -> None:
    """The overview shows the slowest route of five minutes; another window may have another one."""
    assert HEADLINE["p95_seconds"].limit == routes.P95_LIMIT
