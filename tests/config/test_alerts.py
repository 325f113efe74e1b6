"""Alert rules, runbooks, the documented table and Alertmanager's configuration fit together."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TEST_FILES = sorted((PROMETHEUS / "tests").glob("*.test.yml"))
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))

RULES: list[dict[str, Any]] = [
    rule
    for path in RULE_FILES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
# The numbers of promtool's tests and of docs/alerts.md: a user can change others without a failure.
SHIPPED_THRESHOLDS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "tests" / "thresholds.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTMANAGER = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
RUNBOOKS = dict(
    re.findall(
        r'^<section id="(\w+)">\n(.*?)^</section>',
        (ROOT / "docs/runbooks.html").read_text(),
        re.M | re.S,
    )
)
RUNBOOK_PARTS = ["What it means", "What users notice", "Look first at", "Silence"]

every_alert = pytest.mark.parametrize("name", ALERTS)


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command and return its output; if it fails, fail the test with the output."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | (env or {})
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- rules ---------------------------------------------------------------------------------------


def test_promtool_accepts_the_rules() -> None:
    run("promtool", "check", "rules", *RULE_FILES)


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_rules_pass_promtools_tests(path: Path) -> None:
    run("promtool", "test", "rules", path)


@every_alert
def test_alert_has_its_labels_and_annotations(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"page", "ticket", "info"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}


@every_alert
def test_alert_reads_its_numbers_from_thresholds(name: str) -> None:
    """Each number is in thresholds.yml only; an expression may compare with 0 and 1."""
    numbers = re.findall(r"[<>=]=?\s*([+-]?\d[\d.e+-]*)", ALERTS[name]["expr"])
    assert set(numbers) <= {"0", "1"}


@every_alert
def test_alert_reads_only_thresholds_and_records_that_exist(name: str) -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    read = set(re.findall(r"\b[a-z_]+:[a-z0-9_]+(?::[a-z0-9_]+)?\b", ALERTS[name]["expr"]))
    assert read <= recorded


def test_prometheus_keeps_every_server_metric_that_is_read() -> None:
    """The servers are Prometheus, Alertmanager and Grafana; other jobs keep all their metrics."""
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    kept = {
        job["job_name"]: job["metric_relabel_configs"][0]["regex"]
        for job in jobs
        if "metric_relabel_configs" in job
    }
    assert set(kept) == {"prometheus", "alertmanager", "grafana"}
    texts = [rule["expr"] for rule in RULES]
    texts += re.findall(r'"expr": "(.*)"', "".join(path.read_text() for path in DASHBOARDS))
    texts += re.findall(r"<pre.*?</pre>", (ROOT / "docs/runbooks.html").read_text(), re.S)
    names = set()
    for name in re.findall(r"\b(?:prometheus|alertmanager|grafana)_[\w()|]+", "\n".join(texts)):
        start, choices, end = re.fullmatch(r"(\w*)(?:\(([\w|]+)\))?(\w*)\)*", name).groups()
        names |= {start + choice + end for choice in (choices or "").split("|")}
    assert len(names) > 8
    for name in names:
        assert re.fullmatch(kept[name.partition("_")[0]], name), name
    assert all(re.fullmatch(regex, "process_resident_memory_bytes") for regex in kept.values())


@pytest.mark.parametrize("path", [*RULE_FILES, *TEST_FILES], ids=lambda path: path.name)
def test_no_rule_turns_a_threshold_into_a_scalar(path: Path) -> None:
    """`scalar()` of two series is NaN: with a second stack or route, the alert goes silent."""
    assert "scalar(" not in path.read_text()


def test_rules_aggregate_and_join_by_stack() -> None:
    for rule in RULES:
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]):
            alone = re.search(r"present_over_time|stack:(known|expected_job)", rule["expr"])
            assert "stack" in labels.split(", ") or alone, (rule, labels)
        assert not re.search(r"\b(?:sum|max|min|avg|count|group)\(", rule["expr"]), rule
        assert not re.search(r"\babsent\(", rule["expr"]), rule


def test_rules_and_their_tests_have_the_same_thresholds() -> None:
    """The numbers may differ: they are the user's to change."""

    def names(rules: list[dict[str, Any]]) -> set[tuple[str, str]]:
        kept = ("slo", "window")  # a route's own threshold and the objective's `le` may be added
        return {
            (rule["record"], str({key: rule.get("labels", {}).get(key) for key in kept}))
            for rule in rules
            if rule.get("record", "").startswith("threshold:")
        }

    assert names(RULES) == names(SHIPPED_THRESHOLDS)


def test_threshold_missing_covers_every_threshold_that_rules_read() -> None:
    read = {
        name for rule in RULES for name in re.findall(r"\bthreshold:([a-z0-9_]+)", rule["expr"])
    }
    assert read
    covered = ALERTS["ThresholdMissing"]["expr"]
    assert {name for name in read if not re.search(rf'"{name}[ "]', covered)} == set()


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name)
def test_promtools_tests_do_not_depend_on_a_users_thresholds(path: Path) -> None:
    assert "../rules/thresholds.yml" not in yaml.safe_load(path.read_text())["rule_files"]


@every_alert
def test_alert_is_tested_to_fire_and_not_to_fire(name: str) -> None:
    cases = [
        case["exp_alerts"]
        for path in TEST_FILES
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == name
    ]
    assert sum(1 for case in cases if case) == 1, "its texts are tested once; see ALERTS for more"
    assert name == "Watchdog" or not all(cases)


# --- documents -----------------------------------------------------------------------------------


@every_alert
def test_runbook_url_leads_to_a_section_with_every_part(name: str) -> None:
    url = ALERTS[name]["annotations"]["runbook_url"]
    assert url == f"{{{{ $externalLabels.runbooks_url }}}}#{name}"
    section = RUNBOOKS[name]
    assert section.startswith(f"<h2>{name}</h2>\n")
    assert re.findall(r"<h3>(.*)</h3>", section) == RUNBOOK_PARTS
    assert len(re.findall(r"^  <li>", section, re.M)) == 3
    assert '<pre class="promql">' in section
    assert re.search(r"[Pp]anels?\s+<em>", section) or name == "GrafanaDown"


def test_every_runbook_belongs_to_an_alert() -> None:
    assert list(RUNBOOKS) == list(ALERTS)


@every_alert
def test_dashboard_url_leads_to_a_dashboard(name: str) -> None:
    uids = {json.loads(path.read_text())["uid"] for path in DASHBOARDS}
    url = ALERTS[name]["annotations"]["dashboard_url"]
    match = re.match(r"\{\{ \$externalLabels\.grafana_url \}\}/d/([a-z-]+)", url)
    assert match
    assert match[1] in uids


def test_panels_that_runbooks_name_exist() -> None:
    titles = {
        panel["title"]
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        if "title" in panel
    }
    named = {
        title
        for section in RUNBOOKS.values()
        for title in re.findall(r"[Pp]anels?\s+<em>([^<]+)</em>", section)
    }
    assert named
    assert named <= titles


def test_documented_table_agrees_with_the_rules() -> None:
    table = re.findall(
        r"^\| \[(\w+)\]\(runbooks\.html#(\w+)\) \| (.+?) \| (.+?) \| (\w+) \|$",
        (ROOT / "docs/alerts.md").read_text(),
        re.M,
    )
    assert [name for name, *_ in table] == list(ALERTS)
    for name, anchor, meaning, fires_at, severity in table:
        alert = ALERTS[name]
        assert anchor == name
        assert meaning == re.split(r"(?<=\.) ", alert["annotations"]["description"])[0]
        assert severity == alert["labels"]["severity"]
        duration = re.search(r", for (\w+)$", fires_at)
        assert (duration and duration[1]) == alert.get("for")
        if name == "ThresholdMissing":  # it names every threshold, and compares with none
            continue
        for number in threshold_numbers(alert["expr"]):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", fires_at), (name, number)


def test_documents_have_every_setting_of_the_receivers() -> None:
    templates = (PROMETHEUS / "receivers").glob("*.template")
    settings = set(re.findall(r"\$\{(ALERT_\w+)", "".join(path.read_text() for path in templates)))
    text = (ROOT / "docs/alerts.md").read_text()
    assert settings
    assert {name for name in settings if name not in text and name.lower() not in text} == set()


def threshold_numbers(expression: str) -> set[str]:
    """The shipped values of the thresholds that an expression reads, as the table writes them."""
    numbers = set()
    for rule in SHIPPED_THRESHOLDS:
        record = rule["record"]
        window = rule.get("labels", {}).get("window")
        selector = f'{record}{{window="{window}"}}' if window else record
        if selector not in expression or record == "threshold:slo_objective":
            continue
        value = float(re.fullmatch(r"(.+) \* stack:known", rule["expr"])[1])
        if record.endswith(("_ratio", "_drop", "_utilisation")):
            numbers.add(f"{value * 100:g} %")
        elif record.endswith("_bytes"):
            numbers.add(f"{value / 1e6:g} MB")
        else:
            numbers.add(f"{value:g}")
    return numbers


# --- Alertmanager --------------------------------------------------------------------------------

SECRETS = {
    "alert_webhook_url": "http://example.com/it's-a-secret",
    "alert_slack_url": "http://example.com/slack-secret",
    "alert_watchdog_url": "http://example.com/watchdog-secret",
    "alert_smtp_password": 'pass\'word: $(id) `id` \\ "x" #1',
}
EMAIL = {
    "ALERT_EMAIL_TO": "team@example.com",
    "ALERT_EMAIL_FROM": "stack@example.com",
    "ALERT_SMTP_HOST": "mail.example.com:587",
    "ALERT_SMTP_USERNAME": "stack",
}


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., str]:
    """Runs alertmanager.sh with the given settings and, in Alertmanager's place, a command."""
    (tmp_path / "secrets").mkdir()

    def start(
        *command: str, secrets: dict[str, str] | None = None, env: dict[str, str] | None = None
    ) -> str:
        for name, content in (secrets or {}).items():
            (tmp_path / "secrets" / name).write_text(content + "\n")
        places = {
            "ALERT_SECRETS_DIR": str(tmp_path / "secrets"),
            "ALERTMANAGER_RUNTIME_CONFIG": str(tmp_path / "alertmanager.yml"),
        }
        return run("sh", PROMETHEUS / "alertmanager.sh", *command, env=places | (env or {}))

    return start


def receivers(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The receivers that Alertmanager was started with, by name."""
    config = yaml.safe_load((tmp_path / "alertmanager.yml").read_text())
    return {receiver.pop("name"): receiver for receiver in config["receivers"]}


def test_without_settings_no_receiver_is_on(started: Callable[..., str], tmp_path: Path) -> None:
    # Compose passes what .env leaves out as empty variables.
    started("true", env=dict.fromkeys(EMAIL, ""))
    assert receivers(tmp_path) == {"page": {}, "ticket": {}, "watchdog": {}, "nobody": {}}


def test_each_setting_switches_its_receiver_on(started: Callable[..., str], tmp_path: Path) -> None:
    started("true", secrets=SECRETS, env=EMAIL)
    found = receivers(tmp_path)
    assert set(found["page"]) == {"webhook_configs", "slack_configs", "email_configs"}
    assert found["ticket"] == found["page"]
    assert found["page"]["webhook_configs"][0]["url"] == SECRETS["alert_webhook_url"]
    assert found["page"]["slack_configs"][0]["api_url"] == SECRETS["alert_slack_url"]
    assert found["page"]["email_configs"][0]["smarthost"] == EMAIL["ALERT_SMTP_HOST"]
    assert found["page"]["email_configs"][0]["auth_password"] == SECRETS["alert_smtp_password"]
    assert found["watchdog"]["webhook_configs"][0]["url"] == SECRETS["alert_watchdog_url"]
    assert found["nobody"] == {}


def test_amtool_accepts_the_configuration_with_and_without_receivers(
    started: Callable[..., str], tmp_path: Path
) -> None:
    run("amtool", "check-config", PROMETHEUS / "alertmanager.yml")
    started("true", secrets=SECRETS, env=EMAIL)
    run("amtool", "check-config", tmp_path / "alertmanager.yml")


def test_incomplete_email_settings_end_the_start(started: Callable[..., str]) -> None:
    with pytest.raises(AssertionError, match=r"so set ALERT_SMTP_HOST in \.env too"):
        started("true", env=EMAIL | {"ALERT_SMTP_HOST": ""})


@pytest.mark.parametrize("text", ["hooks.example.com/secret", "https://example.com/a secret"])
def test_malformed_url_ends_the_start_and_is_not_shown(
    started: Callable[..., str], text: str
) -> None:
    with pytest.raises(AssertionError, match="there is no URL in ") as failure:
        started("true", secrets={"alert_slack_url": text})
    assert "alert_slack_url" in str(failure.value)
    assert text not in str(failure.value)


def test_values_are_taken_literally(started: Callable[..., str], tmp_path: Path) -> None:
    odd = r"""it's "$HOME" `id` \n \\ # {{ }} %s"""
    email = EMAIL | {"ALERT_EMAIL_TO": "o'brien@example.com", "ALERT_SMTP_USERNAME": odd}
    started("true", secrets={"alert_smtp_password": odd}, env=email)
    config = receivers(tmp_path)["page"]["email_configs"][0]
    assert config["to"] == "o'brien@example.com"
    assert config["auth_username"] == config["auth_password"] == odd


def test_a_users_receivers_are_taken_literally(tmp_path: Path) -> None:
    """Alertmanager's templates have `$` variables, too."""
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    odd = r"""{{ $n := len .Alerts }}{{ $n }} $HOME $(id) `id` ${NOT_OURS} \1 & 'quoted'"""
    template = tmp_path / "prometheus" / "receivers" / "webhook.yml.template"
    template.write_text(f"{template.read_text()}    # {odd}\n")
    (tmp_path / "alert_webhook_url").write_text(r"http://example.com/${ALERT_EMAIL_TO}/&\1$HOME")
    places = {"ALERT_SECRETS_DIR": str(tmp_path), "ALERT_EMAIL_TO": ""}
    places["ALERTMANAGER_RUNTIME_CONFIG"] = str(tmp_path / "alertmanager.yml")
    run("sh", tmp_path / "prometheus" / "alertmanager.sh", "true", env=places)
    assert f"    # {odd}\n" in (tmp_path / "alertmanager.yml").read_text()
    url = receivers(tmp_path)["page"]["webhook_configs"][0]["url"]
    assert url == r"http://example.com/${ALERT_EMAIL_TO}/&\1$HOME"


def test_receiver_whose_file_is_missing_ends_the_start(
    started: Callable[..., str], tmp_path: Path
) -> None:
    config = tmp_path / "own.yml"
    config.write_text("# if ALERT_WEBHOOK_URL: receivers/gone.yml.template\n")
    with pytest.raises(AssertionError, match=r"cannot read .*/receivers/gone\.yml\.template"):
        started("true", secrets=SECRETS, env={"ALERTMANAGER_CONFIG": str(config)})


def test_editors_backups_and_line_ends_are_ignored(
    started: Callable[..., str], tmp_path: Path
) -> None:
    url = SECRETS["alert_slack_url"]
    backups = {"alert_slack_url~": "old", "alert_slack_url.bak": "old", "alert_webhook_url.1": ""}
    started("true", secrets=backups | {"alert_slack_url": f"\n{url}\r"})
    assert receivers(tmp_path)["page"]["slack_configs"][0]["api_url"] == url
    assert "webhook_configs" not in receivers(tmp_path)["page"]


@pytest.mark.parametrize("text", ["", " \r\n"], ids=["empty", "blank"])
def test_secret_without_a_value_ends_the_start(started: Callable[..., str], text: str) -> None:
    with pytest.raises(AssertionError, match="alert_smtp_password is empty: put the value in"):
        started("true", secrets={"alert_smtp_password": text})


@pytest.mark.parametrize("unreadable", ["", "alert_slack_url"], ids=["folder", "file"])
def test_unreadable_secret_ends_the_start(unreadable: str) -> None:
    script = PROMETHEUS / "alertmanager.sh"
    with tempfile.TemporaryDirectory() as folder, script.open() as text:
        Path(folder).chmod(0o755)
        Path(folder, "alert_slack_url").touch()
        Path(folder, unreadable).chmod(0)
        done = subprocess.run(
            ["sh", "-s", "true"],
            stdin=text,
            env=os.environ | {"ALERT_SECRETS_DIR": folder},
            user=65534 if os.geteuid() == 0 else None,  # root may read everything
            capture_output=True,
            text=True,
            check=False,
        )
        Path(folder).chmod(0o755)
    assert done.returncode != 0
    assert f"may not read {Path(folder, unreadable)}" in done.stderr


def test_secrets_are_in_one_private_file_only(started: Callable[..., str], tmp_path: Path) -> None:
    shown = started("sh", "-c", 'env; echo "$@"', "-", secrets=SECRETS, env=EMAIL)
    assert f"--config.file={tmp_path}/alertmanager.yml" in shown
    assert EMAIL["ALERT_SMTP_HOST"] in shown
    assert not [name for name, secret in SECRETS.items() if secret in shown]
    assert stat.S_IMODE((tmp_path / "alertmanager.yml").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=CacheMissRatioHigh", "route=/cache-me", "severity=page"], "page"),
        (["alertname=WorkerKilled", "severity=ticket"], "ticket"),
        (["alertname=SomethingOfYourOwn"], "ticket"),
        (["alertname=SomethingToBeSeen", "severity=info"], "nobody"),
        (["alertname=Watchdog", "severity=info"], "watchdog"),
    ],
)
def test_alerts_are_routed_by_severity(labels: list[str], receiver: str) -> None:
    config = f"--config.file={PROMETHEUS / 'alertmanager.yml'}"
    assert run("amtool", "config", "routes", "test", config, *labels).strip() == receiver


def matchers(text: str) -> dict[str, str]:
    """The values, by label, that a matcher such as `alertname =~ "A|B"` compares with."""
    label, value = re.fullmatch(r'(\w+) (?:=~|=|!=) "?([^"]*)"?', text).groups()
    return {label: value}


@pytest.mark.parametrize("side", ["source_matchers", "target_matchers"])
def test_inhibition_names_alerts_that_exist(side: str) -> None:
    for rule in ALERTMANAGER["inhibit_rules"]:
        for matcher in rule[side]:
            names = matchers(matcher).get("alertname", "Watchdog")
            for pattern in split_alternatives(names):
                assert any(re.fullmatch(pattern, name) for name in ALERTS), pattern


def split_alternatives(pattern: str) -> list[str]:
    """The strings that a regular expression of alternatives matches, groups expanded."""
    group = re.search(r"\(([^()]*)\)", pattern)
    if not group:
        return pattern.split("|")
    return [
        alternative
        for choice in group[1].split("|")
        for alternative in split_alternatives(pattern.replace(group[0], choice, 1))
    ]


def test_inhibiting_alerts_fire_before_the_alerts_that_they_inhibit() -> None:
    """Otherwise Alertmanager sends the consequence first."""
    seconds = {
        name: {"s": 1, "m": 60}[duration[-1]] * int(duration[:-1])
        for name, alert in ALERTS.items()
        if (duration := alert.get("for", "0s"))
    }
    assert seconds["UpstreamDown"] + 60 < seconds["TargetDown"]
    assert seconds["CacheMissRatioHigh"] < seconds["CacheOffloadDropped"]
    assert seconds["AvailabilityBudgetBurnFast"] < seconds["AvailabilityBudgetBurnSlow"]
    assert seconds["LatencyBudgetBurnFast"] < seconds["LatencyBudgetBurnSlow"]


@every_alert
def test_alert_says_which_job_measures_it(name: str) -> None:
    """Otherwise Alertmanager does not mute it while that job's target is down."""
    jobs = {
        scrape["job_name"]
        for scrape in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    }
    job = ALERTS[name]["labels"].get("job")
    of_no_job = {
        *("UpstreamDown", "TargetDown", "GrafanaDown", "TargetMissing", "Watchdog"),
        "ServiceRestarting",
        "MemoryNearLimit",  # has the job of its container
    }
    assert (job in jobs) != (name in of_no_job)
