"""The guide of examples/existing-host, typed on Debian hosts that run systemd in a container.

Time passes faster for the rules, so that an alert comes within a minute. The rest is as written.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from local.settings import ROOT
from tests.alerting import faster
from tests.config.test_dashboards import DASHBOARDS
from tests.sample import tracked
from tests.stacks import require_engine, run, wait_until

DEBIAN = "debian:12"
IMAGE = "stack-test-existing-host"
FILES = ROOT / "tests" / "existing_host"
EXAMPLE = ROOT / "examples" / "existing-host"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (EXAMPLE / "README.md").read_text(), re.M | re.S)
(START, APP, APP_UNIT, LOG, INCLUDE, SITE, EXPORTERS, CACHE, JOBS, LINKS, LIST, *_, TEST) = BLOCKS
NO_NGINX, NO_GUNICORN = BLOCKS[-3:-1]
CLONE = "/opt/stack"
DEBIANS_SITE, NGINX_ORGS_SITE = "/etc/nginx/sites-available/shop", "/etc/nginx/conf.d/shop.conf"
MINUTES = 60.0


class Host:
    """A running Debian host."""

    def __init__(self, container: str) -> None:
        self._container = container
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        inspect = ["docker", "inspect", "--format", form, container]
        self._address = subprocess.check_output(inspect, text=True).strip()

    def run(self, commands: str) -> str:
        """Run commands in one shell as root, in the clone; fails where one of them does."""
        # No terminal, and no questions of apt's.
        shell = ["docker", "exec", "--workdir", CLONE, self._container, "bash", "-ec", commands]
        return run(shell)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of a PromQL expression."""
        url = f"http://{self._address}:9090/api/v1/query"
        answer = requests.get(url, params={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def evaluated(self) -> bool:
        """Whether the rules were evaluated for longer than any alert waits for missing targets."""
        return bool(self.query("count_over_time(stack:known[1h]) > 20"))

    def firing(self) -> set[tuple[str, str]]:
        """Name and job of the alerts that fire, without Watchdog."""
        alerts = self.query('ALERTS{alertstate="firing", alertname!="Watchdog"}')
        return {(each["metric"]["alertname"], each["metric"].get("job", "")) for each in alerts}

    def wait_until_silent(self) -> None:
        """Wait for the rules' evaluation, and until no alert fires."""
        wait_until(self.evaluated, 3 * MINUTES, "the rules' evaluation")
        # Under load an alert may fire for a moment; one about an absent part would not end.
        wait_until(lambda: not self.firing(), MINUTES, "no alert to fire")


@pytest.fixture(scope="module")
def image() -> str:
    """The image of a host that this project has not touched."""
    require_engine("Debian host in a container")
    build = ["docker", "build", "--tag", IMAGE, "--build-arg", f"DEBIAN_IMAGE={DEBIAN}", FILES]
    run(build, os.environ | {"DOCKER_BUILDKIT": "0"})
    return IMAGE


@contextlib.contextmanager
def started(image: str, folder: Path) -> Iterator[Host]:
    """A host on which systemd, nginx, the shop and Prometheus run, with a clone of this project."""
    options = ["--cgroupns=private", "--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp"]
    # systemd mounts; the exporter reads the cache, as its unit says.
    options += ["--cap-add=SYS_ADMIN", "--cap-add=DAC_READ_SEARCH"]
    options += ["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"]
    command = ["docker", "run", "--detach", "--env=container=docker", *options, image]
    container = subprocess.check_output(command, text=True).strip()
    try:
        clone = folder / "clone.tar"
        with tarfile.open(clone, "w") as archive:
            for path in tracked():
                archive.add(ROOT / path, f"{CLONE}/{path}")
        copy = ["docker", "cp", "-", f"{container}:/"]
        with clone.open("rb") as source:
            subprocess.run(copy, stdin=source, check=True, capture_output=True)
        host = Host(container)
        make_time_pass_faster(host)
        wait_until(lambda: reached(host, "running|degraded"), 2 * MINUTES, "systemd")
        host.run(
            "install -m 644 -t /etc/systemd/system examples/existing-host/systemd/shop.service;"
            "systemctl daemon-reload; systemctl enable --now shop"
        )
        yield host
    finally:
        subprocess.run(["docker", "rm", "--force", container], check=True, capture_output=True)


def reached(host: Host, states: str) -> bool:
    """Whether systemd is in one of these states."""
    state = host.run("systemctl is-system-running 2>&1 || true").strip()
    return re.fullmatch(states, state) is not None


def make_time_pass_faster(host: Host) -> None:
    """Divide the durations of the rules, of the example's jobs and of Debian's prometheus.yml."""
    own = "/etc/prometheus/prometheus.yml"
    paths = [*ROOT.glob("prometheus/rules/*.yml"), *EXAMPLE.glob("prometheus/*.yml")]
    texts = {f"{CLONE}/{path.relative_to(ROOT)}": path.read_text() for path in paths}
    texts[own] = host.run(f"cat {own}")
    for path, text in texts.items():
        # On a busy machine, a scrape in a container may take a second.
        patient = re.sub(r"(scrape_interval|scrape_timeout): 1s", r"\1: 2s", faster(text))
        host.run(f"cat > {path} <<'END'\n{patient}\nEND")


def use_layout_of_nginx_org(host: Host) -> None:
    """Give Debian's nginx the configuration and the user of nginx.org's packages."""
    host.run(
        "useradd --system --no-create-home --shell /sbin/nologin nginx;"
        "cp tests/existing_host/nginx.org.conf /etc/nginx/nginx.conf;"
        f"mv {DEBIANS_SITE} {NGINX_ORGS_SITE}; rm -r /etc/nginx/sites-*;"
        "rm -r /var/cache/nginx-shop; systemctl restart nginx"
    )


def missing_queries(host: Host) -> list[str]:
    """Queries of the overview's stats, tables and graphs that Prometheus refuses."""
    refused = []
    for dashboard in DASHBOARDS:
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                expression = re.sub(r"\$__(rate_interval|range|interval)", "1m", target["expr"])
                expression = re.sub(r"\$\{?\w+\}?", ".+", expression)
                with contextlib.suppress(AssertionError):
                    host.query(expression)
                    continue
                refused.append(expression)
    return refused


def test_the_guide_ends_with_dashboards_and_an_alert(image: str, tmp_path: Path) -> None:
    with started(image, tmp_path) as host:
        guide = [START, APP, APP_UNIT, LOG, INCLUDE, SITE, EXPORTERS, CACHE, JOBS, LINKS, LIST]
        host.run("\n".join(guide))
        units = "nginx-access-exporter.service shop.service"
        assert host.run(f"cd /etc/systemd/system; systemd-analyze verify {units} 2>&1") == ""

        misses = "for n in $(seq 300); do curl -s -o /dev/null localhost/products/$n$RANDOM; done"
        alert = ("CacheMissRatioHigh", "nginx-access-exporter")
        wait_until(lambda: host.run(misses) or alert in host.firing(), 5 * MINUTES, "the alert")
        assert host.query('route:nginx_cache_miss:ratio_rate5m{route="/products/<int:number>"}')
        # Debian's prometheus.yml has a job "node", and no exporter runs for it.
        names = {name for name, _ in host.firing()}
        assert not names & {"TargetMissing", "ThresholdMissing"}
        assert ("TargetDown", "node") not in host.firing()
        (watchdog,) = host.query('ALERTS{alertname="Watchdog"}')
        assert "{{" not in str(watchdog["metric"])  # each address is set
        delivered = "curl --silent localhost:9093/api/v2/alerts"
        wait_until(lambda: alert[0] in host.run(delivered), MINUTES, "Alertmanager to get it")
        for metric in ("nginx_cache_entries > 0", "gunicorn_request_queue_duration_seconds_count"):
            wait_until(lambda it=metric: host.query(it), MINUTES, metric)
        assert missing_queries(host) == []

        # nginx reopens its logs as its own user, after logrotate; then the exporter goes on.
        host.run("systemctl kill --signal USR1 --kill-who=main nginx")
        lines = "nginx_access_exporter_lines_total"
        before = float(host.query(lines)[0]["value"][1])
        host.run("curl --silent localhost/")
        wait_until(lambda: float(host.query(lines)[0]["value"][1]) > before, MINUTES, lines)
        assert "X-Route" not in host.run("curl --silent --head localhost/")


def test_only_nginx_from_nginx_org(image: str, tmp_path: Path) -> None:
    with started(image, tmp_path) as host:
        use_layout_of_nginx_org(host)
        start = START.replace(DEBIANS_SITE, NGINX_ORGS_SITE, 1)
        jobs = JOBS.replace("in gunicorn nginx;", "in nginx;")
        guide = [start, LOG, INCLUDE, SITE, EXPORTERS, CACHE, jobs, LINKS, LIST, NO_GUNICORN]
        host.run("\n".join(guide) + "\nsudo systemctl restart prometheus")
        host.run("for n in $(seq 20); do curl --silent localhost/products/1; done")
        hits = 'nginx_route_requests_total{route="none", cache="HIT"} == 19'
        wait_until(lambda: host.query(hits), MINUTES, "19 hits")
        host.wait_until_silent()


def test_only_gunicorn(image: str, tmp_path: Path) -> None:
    with started(image, tmp_path) as host:
        jobs = JOBS.replace("in gunicorn nginx;", "in gunicorn;")
        guide = [START, APP, APP_UNIT, jobs, LINKS, LIST, NO_NGINX]
        host.run("\n".join(guide) + "\nsudo systemctl restart prometheus")
        host.run("for n in $(seq 20); do curl --silent localhost:8000/products/1; done")
        counted = 'sum(flask_http_request_total{route="/products/<int:number>"}) == 20'
        wait_until(lambda: host.query(counted), MINUTES, "20 requests")
        host.wait_until_silent()


def test_every_block_of_commands_is_tried() -> None:
    assert len(BLOCKS) == 15
    assert "api/dashboards/db" in BLOCKS[11]  # tests/e2e/test_grafana_import.py
    assert "test_existing_host" in TEST
