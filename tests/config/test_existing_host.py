"""The rules beside the jobs of a user's own Prometheus: what does not run there raises no alert.

The commands that delete jobs from the list are those of examples/existing-host/README.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from local.settings import ROOT
from tests.stacks import run

RULES = ROOT / "prometheus" / "rules"
EXAMPLE = ROOT / "examples" / "existing-host"
GUIDE = (EXAMPLE / "README.md").read_text()
DELETIONS = re.findall(
    r"^sudo (sed -i '/job: .+) /etc/prometheus/stack-rules/stacks.yml$", GUIDE, re.M
)
ALERTMANAGER, NGINX, GUNICORN = DELETIONS

# Values at each scrape, every 5 s for 20 minutes. "node" is somebody's job that is down,
# and none of ours; `team` is somebody's label.
ALWAYS, NEVER = "1x240", "0x240"
OTHERS = {
    'up{job="prometheus", instance="localhost:9090"}': ALWAYS,
    'up{job="node", instance="localhost:9100"}': NEVER,
    'prometheus_notifications_alertmanagers_discovered{job="prometheus"}': ALWAYS,
}
APP = 'job="flask-app", instance="a", team="x"'
ONLY_GUNICORN = OTHERS | {
    f"up{{{APP}}}": ALWAYS,
    f"gunicorn_workers{{{APP}}}": "2x240",
    f"gunicorn_workers_configured{{{APP}}}": "2x240",
    f"gunicorn_worker_threads{{{APP}}}": "2x240",
    f'gunicorn_worker_busy_seconds_total{{{APP}, worker="1"}}': "0+1x240",
    f'flask_http_request_total{{{APP}, route="/"}}': "0+50x240",
}
STATUS = 'job="nginx-exporter", instance="n", team="x"'
LOG = 'job="nginx-access-exporter", instance="n", team="x"'
ONLY_NGINX = OTHERS | {
    'up{job="nginx-proxy", instance="n", team="x"}': ALWAYS,
    f"up{{{STATUS}}}": ALWAYS,
    f"up{{{LOG}}}": ALWAYS,
    f"nginx_up{{{STATUS}}}": ALWAYS,
    f"nginx_http_requests_total{{{STATUS}}}": "0+52x240",
    f"nginx_access_exporter_lines_total{{{LOG}}}": "0+50x240",
    f"nginx_access_exporter_malformed_lines_total{{{LOG}}}": NEVER,
    f"nginx_access_exporter_backlog_bytes{{{LOG}}}": NEVER,
    f'nginx_route_requests_total{{{LOG}, route="none", status="200", cache="HIT"}}': "0+50x240",
    f'nginx_route_upstream_attempts_total{{{LOG}, route="none", status="200"}}': "0+5x240",
}
ALERTS_SO_FAR = 'count by (alertname, job) (count_over_time(ALERTS{alertstate="firing"}[20m]))'


def check_silence(folder: Path, series: dict[str, str], *deletions: str) -> None:
    """Fail unless, after the deletions from the list of jobs, only Watchdog fires."""
    shutil.copytree(RULES, folder / "rules")
    for deletion in deletions:
        subprocess.run(f"{deletion} {folder}/rules/stacks.yml", shell=True, check=True)  # noqa: S602
    case = {
        "interval": "5s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "eval_time": "20m",
                "expr": ALERTS_SO_FAR,
                "exp_samples": [{"labels": '{alertname="Watchdog"}', "value": 1}],
            }
        ],
    }
    groups = [
        group["name"]
        for name in ("stacks", "thresholds", "nginx", "gunicorn", "slo", "alerts")
        for group in yaml.safe_load((RULES / f"{name}.yml").read_text())["groups"]
    ]
    test = {
        "rule_files": sorted(str(path) for path in (folder / "rules").glob("*.yml")),
        "evaluation_interval": "30s",
        "group_eval_order": groups,
        "tests": [case],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    run(["promtool", "test", "rules", folder / "test.yml"])


@pytest.mark.parametrize(
    ("series", "absent"),
    [(ONLY_GUNICORN, NGINX), (ONLY_NGINX, GUNICORN)],
    ids=["gunicorn", "nginx"],
)
def test_alerts_are_silent_about_what_does_not_run(
    series: dict[str, str], absent: str, tmp_path: Path
) -> None:
    check_silence(tmp_path, series, ALERTMANAGER, absent)


def test_a_job_that_stays_in_the_list_is_missed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r'alertname="TargetMissing", job="nginx-proxy"'):
        check_silence(tmp_path, ONLY_GUNICORN, ALERTMANAGER)


def test_scrape_jobs_of_the_example_have_the_labels_that_rules_know() -> None:
    jobs = [
        job
        for name in ("gunicorn", "nginx")
        for job in yaml.safe_load((EXAMPLE / "prometheus" / f"{name}.yml").read_text())[
            "scrape_configs"
        ]
    ]
    labels = {rule["replacement"] for job in jobs for rule in job["relabel_configs"]}
    rules = yaml.safe_load((RULES / "stacks.yml").read_text())["groups"][0]["rules"]
    expected = {rule["labels"]["job"] for rule in rules if rule["record"] == "stack:expected_job"}
    assert labels == expected - {"prometheus", "alertmanager"}
    assert not labels & {job["job_name"] for job in jobs}  # names of the user's own


def test_every_job_that_the_stack_scrapes_is_expected() -> None:
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    rules = yaml.safe_load((RULES / "stacks.yml").read_text())["groups"][0]["rules"]
    expected = {rule["labels"]["job"] for rule in rules if rule["record"] == "stack:expected_job"}
    # Grafana may be absent; GrafanaDown watches it.
    assert expected == {job["job_name"] for job in config["scrape_configs"]} - {"grafana"}
