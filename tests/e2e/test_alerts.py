"""Alerts, from the failure to the messages that report its begin and its end.

The stack runs copies of its own rules and settings in which time passes faster: see
`faster_configuration`.
"""

from __future__ import annotations

import contextlib
import html
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import parse_qsl, urljoin, urlsplit

import pytest
import requests
import yaml

from local.settings import ROOT
from tests.alerting import (
    GUNICORN_TIMEOUT,
    Message,
    Receivers,
    faster_configuration,
    traffic,
)
from tests.stacks import ComposeStack, Process, Stack, launch, settle, wait_until

DEADLINE = 150.0  # seconds for a message: the slowest takes 60 on an idle machine
MEBIBYTE = 2**20

# Only after a failure, or with HTTPS.
NOT_ALWAYS_THERE = {
    "nginx_route_incomplete_responses_total",
    "gunicorn_requests_shed_total",
    "nginx_certificate_expiry_timestamp_seconds",
}
# A metric of an exporter or server, not a record (they have colons).
METRIC_NAME = r"(?<![:\w])(?:nginx|flask|gunicorn|prometheus|alertmanager|scrape)_[a-z_]+\b(?!:)"


@pytest.fixture(scope="module")
def receivers(kind: str) -> Iterator[Receivers]:
    """Receivers of their own for each kind of stack."""
    del kind
    with Receivers().serving() as serving:
        yield serving


@pytest.fixture(scope="module")
def secrets(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of Alertmanager's settings; Alertmanager may be another user."""
    folder = tmp_path_factory.mktemp(f"secrets-{kind}")
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def fast(
    kind: str, receivers: Receivers, secrets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack in which time passes faster, and whose alerts go to the receivers."""
    folder = tmp_path_factory.mktemp(f"faster-{kind}")
    settings = faster_configuration(folder) | {
        "ALERT_SECRETS_DIR": str(secrets),
        "GUNICORN_TIMEOUT": str(GUNICORN_TIMEOUT),
        "GRAFANA_URL": "https://grafana.example.com",
        "RUNBOOKS_URL": "https://example.com/runbooks.html",
    }
    with launch(kind, settings) as running:
        # Only now is the address known at which the stack reaches this process.
        host = running.host_address
        for name, value in {
            "alert_webhook_url": f"http://{host}:{receivers.http_port}/webhook",
            "alert_slack_url": f"http://{host}:{receivers.http_port}/slack",
            "alert_smtp_host": f"{host}:{receivers.smtp_port}",
            "alert_smtp_require_tls": "false",
            "alert_email_to": "team@example.com",
            "alert_email_from": "stack@example.com",
        }.items():
            (secrets / name).write_text(f"{value}\n")
        running.restart("alertmanager")
        # An exit before the first scrape would not count as an increase.
        wait_until(lambda: running.query("gunicorn_worker_exits_total"), DEADLINE, "a scrape")
        yield running


# --- what happens --------------------------------------------------------------------------------


def promql(page: str) -> list[str]:
    """The queries on a page in docs/."""
    text = (ROOT / "docs" / page).read_text()
    return [html.unescape(it) for it in re.findall(r'<pre class="promql">(.*?)</pre>', text, re.S)]


@contextlib.contextmanager
def stopped(stack: Stack, service: str) -> Iterator[None]:
    """The service does not run for as long as the context lasts."""
    stack.stop(service)
    try:
        yield
    finally:
        stack.start(service)


def received(stack: Stack, receivers: Receivers, name: str, status: str, **labels: str) -> Message:
    """Wait for the message; returns its alert."""

    def arrived() -> Message | None:
        for alert in receivers.alerts(name, status):
            if labels.items() <= alert["labels"].items():
                return alert
        return None

    try:
        return wait_until(arrived, DEADLINE, f"{name} {labels} to be sent as {status}")
    except AssertionError as error:
        for expression in ("ALERTS", "up", "max_over_time(gunicorn_worker_exits_total[15m])"):
            error.add_note(f"{expression}: {stack.query(expression)}")
        alerts = requests.get(f"{stack.alertmanager}/api/v2/alerts", timeout=10).text
        error.add_note(f"Alertmanager: {alerts}")
        raise


def post_alert(stack: Stack, **labels: str) -> None:
    """Send Alertmanager an alert that does not come from a rule."""
    annotations = {"summary": "It is", "runbook_url": "https://example.com/runbooks.html#x"}
    alert = {"labels": labels, "annotations": annotations}
    url = f"{stack.alertmanager}/api/v2/alerts"
    requests.post(url, json=[alert], timeout=10).raise_for_status()


def worker(stack: Stack) -> Process:
    """One of gunicorn's workers: a copy of the main process, so it has the same command line."""
    arbiter, *others = stack.processes("flask-app")
    return next(process for process in others if process.command == arbiter.command)


def test_miss_storm_sends_firing_and_resolved(fast: Stack, receivers: Receivers) -> None:
    """Although Alertmanager does not run when the alert begins."""
    firing = 'ALERTS{alertname="CacheMissRatioHigh", alertstate="firing"}'
    with traffic(fast, "/cache-me", busting=True):
        with stopped(fast, "alertmanager"):
            wait_until(lambda: fast.query(firing), DEADLINE, "the alert to begin")
        alert = received(fast, receivers, "CacheMissRatioHigh", "firing")
    assert alert["labels"] == {
        "alertname": "CacheMissRatioHigh",
        "route": "/cache-me",
        "job": "nginx-access-exporter",
        "severity": "page",
    }
    annotations = alert["annotations"]
    assert re.match(r"/cache-me: [\d.]+% of the requests miss", annotations["summary"])
    assert annotations["runbook_url"] == "https://example.com/runbooks.html#CacheMissRatioHigh"
    assert annotations["dashboard_url"] == (
        "https://grafana.example.com/d/route?var-route=%2Fcache-me"
    )
    assert alert["generatorURL"].startswith(f"http://localhost:{fast.ports['PROMETHEUS_PORT']}/")
    with traffic(fast, "/cache-me"):
        received(fast, receivers, "CacheMissRatioHigh", "resolved", route="/cache-me")


def test_every_receiver_gets_its_own_form_of_message(fast: Stack, receivers: Receivers) -> None:
    post_alert(fast, alertname="SomethingOfYourOwn", route="/x", severity="page")

    def slack() -> dict[str, str] | None:
        posts = [
            post for message in receivers.messages("/slack") for post in message["attachments"]
        ]
        return next((post for post in posts if "SomethingOfYourOwn" in post["title"]), None)

    def mail() -> EmailMessage | None:
        subject = "[FIRING:1] SomethingOfYourOwn /x"
        mails = receivers.messages("mail")
        return next((mail for mail in mails if mail["Subject"].startswith(subject)), None)

    post = wait_until(slack, DEADLINE, "a post")
    assert post["title"] == "FIRING: SomethingOfYourOwn /x"
    assert "<https://example.com/runbooks.html#x|Runbook>" in post["text"]
    letter = wait_until(mail, DEADLINE, "a mail")
    assert letter["To"] == "team@example.com"
    assert "https://example.com/runbooks.html#x" in letter.get_body(("html",)).get_content()


def test_killed_worker_sends_an_alert(fast: Stack, receivers: Receivers) -> None:
    fast.signal("flask-app", worker(fast), signal.SIGKILL)
    alert = received(fast, receivers, "WorkerKilled", "firing", reason="signal")
    assert alert["labels"]["severity"] == "ticket"


def test_hanging_worker_sends_an_alert(fast: Stack, receivers: Receivers) -> None:
    fast.signal("flask-app", worker(fast), signal.SIGSTOP)
    alert = received(fast, receivers, "WorkerTimeouts", "firing", reason="timeout")
    assert alert["labels"]["severity"] == "ticket"


@contextlib.contextmanager
def limited(stack: Stack, *limits: str) -> Iterator[None]:
    """flask-app's container has other limits, for as long as the context lasts."""
    if not isinstance(stack, ComposeStack):
        pytest.skip("local processes have no limits")
    (container,) = stack.containers("flask-app")
    subprocess.run(["docker", "update", *limits, container], check=True, capture_output=True)
    try:
        yield
    finally:
        stack.compose("up", "--wait", "--no-deps", "--force-recreate", "flask-app")


def test_memory_that_runs_out_is_announced_and_then_named_as_the_cause(
    fast: Stack, receivers: Receivers
) -> None:
    def described() -> list[str]:
        alerts = requests.get(f"{fast.prometheus}/api/v1/alerts", timeout=10).json()["data"]
        return [
            alert["annotations"]["description"]
            for alert in alerts["alerts"]
            if alert["labels"]["alertname"] == "WorkerKilled"
            and "Memory ran out" in alert["annotations"]["description"]
        ]

    def used_steps() -> int:
        used = fast.total("flask-app", "cgroup_memory_working_set_bytes")
        return round(used / (4 * MEBIBYTE))

    limit = 256 * MEBIBYTE
    with limited(fast, f"--memory={limit}", f"--memory-swap={limit}"):
        used = settle(used_steps, 3, 60, "every worker to have loaded the app") * 4 * MEBIBYTE
        requests.get(f"{fast.flask}/?hold={0.93 * limit - used:.0f}", timeout=60)
        alert = received(fast, receivers, "MemoryNearLimit", "firing", job="flask-app")
        assert re.search(r"uses 9\d(\.\d+)?% of its memory limit", alert["annotations"]["summary"])
        with contextlib.suppress(requests.RequestException):  # its worker is killed
            requests.get(f"{fast.flask}/?allocate={limit}", timeout=60)
        wait_until(described, DEADLINE, "WorkerKilled to say that memory ran out")


def test_cpu_limit_that_makes_requests_wait_sends_an_alert(
    fast: Stack, receivers: Receivers
) -> None:
    with limited(fast, "--cpus=0.2"), contextlib.ExitStack() as clients:
        for _ in range(4):
            clients.enter_context(traffic(fast, "/?compute=0.05"))
        alert = received(fast, receivers, "CPUThrottled", "firing", job="flask-app")
    assert re.search(r"for \d\.\d\d s per second", alert["annotations"]["summary"])


def test_full_cache_sends_an_alert(fast: Stack, receivers: Receivers) -> None:
    (limit,) = fast.query("nginx_cache_max_size_bytes")
    size = int(limit["value"]) // 100
    with ThreadPoolExecutor(4) as pool:
        for number in range(110):
            url = f"{fast.http}/cache-me?size={size}&n=full-{number}"
            pool.submit(requests.get, url, timeout=60)
    # Further entries take the place of others.
    with traffic(fast, "/cache-me?size=100000", busting=True):
        evicted = "nginx_cache_evictions_total > 0"
        wait_until(lambda: fast.query(evicted), DEADLINE, "the exporter to see that entries went")
        alert = received(fast, receivers, "CacheFull", "firing", zone="responses")
    assert re.search(r"responses is [\d.]+% full", alert["annotations"]["summary"])


def test_stopped_exporter_sends_an_alert(fast: Stack, receivers: Receivers) -> None:
    # Engines after 20.10 say at once that the name of a stopped container is gone, and so the
    # target goes, too.
    names = ("TargetDown", "TargetMissing")

    def arrived() -> list[Message]:
        firing = [alert for name in names for alert in receivers.alerts(name, "firing")]
        return [each for each in firing if each["labels"]["job"] == "nginx-access-exporter"]

    with stopped(fast, "nginx-access-exporter"):
        alert, *_ = wait_until(arrived, DEADLINE, "one of the two alerts")
    assert alert["labels"]["severity"] == "page"
    name = alert["labels"]["alertname"]
    received(fast, receivers, name, "resolved", job="nginx-access-exporter")


def test_stopped_flask_sends_an_alert_without_its_consequences(
    fast: Stack, receivers: Receivers
) -> None:
    def sent_since() -> list[Message]:
        return [
            alert
            for message in receivers.messages("/webhook")[before:]
            for alert in message["alerts"]
            if alert["status"] == "firing"  # alerts of the tests before may end only now
        ]

    def consequence_is_muted() -> bool:
        name = 'alertname="AvailabilityBudgetBurnFast"'
        alerts = requests.get(
            f"{fast.alertmanager}/api/v2/alerts", params={"filter": name}, timeout=10
        ).json()
        return any(alert["status"]["inhibitedBy"] for alert in alerts)

    before = len(receivers.messages("/webhook"))
    with traffic(fast, "/"), stopped(fast, "flask-app"):
        alert = received(fast, receivers, "UpstreamDown", "firing")
        wait_until(consequence_is_muted, DEADLINE, "Alertmanager to mute a consequence")
        sent_meanwhile = sent_since()
    assert alert["labels"] == {"alertname": "UpstreamDown", "severity": "page"}
    names = {alert["labels"]["alertname"] for alert in sent_meanwhile}
    # On a busy machine, the receivers here may be too slow. Then this alert is right to fire.
    assert names - {"AlertDeliveryFailing"} == {"UpstreamDown"}
    with traffic(fast, "/"):
        received(fast, receivers, "UpstreamDown", "resolved")


def test_service_that_ends_again_and_again_raises_an_alert(fast: Stack) -> None:
    # A service that starts fast: the alert needs three starts within its window.
    started = 'process_start_time_seconds{job="alertmanager"}'
    ended = []

    def fires() -> bool:
        """End the service whenever Prometheus has seen its next start."""
        if (start := fast.query(started)) and start[0]["value"] not in ended:
            ended.append(start[0]["value"])
            fast.kill("alertmanager", signal.SIGTERM)
        return bool(fast.query('ALERTS{alertname="ServiceRestarting", alertstate="firing"}'))

    wait_until(fires, DEADLINE, "ServiceRestarting to fire")
    assert len(ended) > 2


def test_failing_receiver_is_reported_to_the_others_without_its_secret(
    fast: Stack, receivers: Receivers, secrets: Path
) -> None:
    def slack_got_the_alert() -> bool:
        return any(
            "cannot be delivered to webhook" in str(message)
            for message in receivers.messages("/slack")
        )

    # Nobody listens on port 9, "discard".
    (secrets / "alert_webhook_url").write_text(f"http://{fast.host_address}:9/the-secret")
    fast.restart("alertmanager")
    post_alert(fast, alertname="SomethingToFailWith", severity="page")
    wait_until(slack_got_the_alert, DEADLINE, "Slack to get AlertDeliveryFailing")
    logs = fast.logs("alertmanager")
    assert "webhook" in logs
    if fast.kind == "compose":  # Alertmanager before 0.26, as in Debian 12, shows the URL
        assert "the-secret" not in logs


def test_metrics_that_alerts_and_runbooks_read_exist(fast: Stack) -> None:
    with traffic(fast, "/cache-me"):
        texts = [
            rule["expr"]
            for path in (ROOT / "prometheus" / "rules").glob("*.yml")
            for group in yaml.safe_load(path.read_text())["groups"]
            for rule in group["rules"]
        ]
        texts += promql("runbooks.html")
        names = set(re.findall(METRIC_NAME, "\n".join(texts))) - NOT_ALWAYS_THERE
        assert len(names) > 20
        wait_until(
            lambda: all(fast.query(name) for name in names),
            DEADLINE,
            f"Prometheus to have all of {sorted(names)}",
        )


def test_every_rule_can_be_evaluated(fast: Stack) -> None:
    failures = fast.query("max(prometheus_rule_evaluation_failures_total)")
    assert [sample["value"] for sample in failures] == [0]
    assert fast.query('ALERTS{alertname=~"ThresholdMissing|RuleEvaluationFailing"}') == []


def test_watchdog_carries_the_addresses_to_prometheus_only(fast: Stack) -> None:
    (watchdog,) = fast.query('ALERTS{alertname="Watchdog"}')
    addresses = {name: url for name, url in watchdog["metric"].items() if name.endswith("_url")}
    assert addresses.pop("grafana_url") == "https://grafana.example.com"
    assert addresses.pop("runbooks_url") == "https://example.com/runbooks.html"
    for name, port in (
        ("prometheus_url", "PROMETHEUS_PORT"),
        ("alertmanager_url", "ALERTMANAGER_PORT"),
    ):
        assert addresses.pop(name).endswith(f":{fast.ports[port]}")
    assert addresses == {}

    def watchdogs() -> list[dict[str, str]]:
        query = {"filter": 'alertname="Watchdog"'}
        alerts = requests.get(f"{fast.alertmanager}/api/v2/alerts", params=query, timeout=10).json()
        return [alert["labels"] for alert in alerts]

    wait_until(watchdogs, DEADLINE, "Watchdog to reach Alertmanager")
    assert watchdogs() == [{"alertname": "Watchdog", "severity": "info"}]


@pytest.mark.parametrize("page", ["runbooks.html", "graphs.html"])
def test_prometheus_serves_the_pages_and_answers_their_queries(fast: Stack, page: str) -> None:
    served = requests.get(f"{fast.prometheus}/user/{page}", timeout=10)
    assert served.headers["Content-Type"] == "text/html; charset=utf-8"
    assert served.text == (ROOT / "docs" / page).read_text()
    assert promql(page)
    for query in promql(page):
        fast.query(query)  # raises an error if Prometheus refuses it


def test_every_alert_links_to_its_section_of_the_runbooks(fast: Stack) -> None:
    rules = requests.get(f"{fast.prometheus}/api/v1/rules?type=alert", timeout=10).json()
    names = [rule["name"] for group in rules["data"]["groups"] for rule in group["rules"]]
    page = requests.get(f"{fast.prometheus}/user/runbooks.html", timeout=10).text
    assert sorted(names) == sorted(re.findall(r'<section id="(\w+)">', page))


def test_links_to_graphs_open_prometheus_interface_with_the_query(fast: Stack) -> None:
    text = (ROOT / "docs" / "graphs.html").read_text()
    *each, last = promql("graphs.html")
    links = [html.unescape(it) for it in re.findall(r'href="(/graph\?[^"]+)"', text)]
    shown = [
        [value for name, value in parse_qsl(urlsplit(link).query) if name.endswith(".expr")]
        for link in links
    ]
    assert shown == [[*each, last], *([query] for query in (*each, last))]
    for link in links:
        url = urljoin(f"{fast.prometheus}/user/graphs.html", link)
        # Debian's Prometheus redirects twice. Debian's Prometheus 3 does not contain the page.
        final = requests.get(url, timeout=10)
        assert urlsplit(final.url).path in ("/classic/graph", "/query")
        assert parse_qsl(urlsplit(final.url).query) == parse_qsl(urlsplit(link).query)
