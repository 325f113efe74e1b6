"""Who receives alerts, and whether a test alert arrives."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from local.settings import ROOT, StackError

# The variable that switches a receiver on, and Alertmanager's name for that kind.
RECEIVERS = {
    "ALERT_WEBHOOK_URL": ("webhook", "webhook"),
    "ALERT_SLACK_URL": ("Slack", "slack"),
    "ALERT_EMAIL_TO": ("e-mail to {}", "email"),
    "ALERT_WATCHDOG_URL": ("dead man's switch (Watchdog only)", "webhook"),
}
# These count each attempt. The counters of notifications count only failures of the last retry.
TRIED = re.compile(r'alertmanager_notification_requests_total\{.*integration="(\w+)".*\} (\S+)')
FAILED = re.compile(
    r'alertmanager_notification_requests_failed_total\{.*integration="(\w+)".*\} (\S+)'
)
NOTIFIED_WITHIN = 30.0  # seconds; Alertmanager waits 5 s for further alerts of the group
# Prometheus sends a firing alert to Alertmanager again after a minute, at its next evaluation.
RECENT = timedelta(seconds=90)
# Seconds. Just after a start, Prometheus may not know Alertmanager yet; its message is lost then.
WATCHDOG_WITHIN = 90.0
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # on this machine: no proxy


def known_names() -> set[str]:
    """The variables that Alertmanager's configuration and the receivers' templates read."""
    folder = ROOT / "prometheus"
    texts = [(folder / "alertmanager.yml").read_text()]
    texts += [path.read_text() for path in (folder / "receivers").iterdir()]
    return set(re.findall(r"ALERT_[A-Z_]+", "\n".join(texts)))


def secrets_folder(values: dict[str, str]) -> Path:
    """The folder of secret settings, one file each."""
    return ROOT / (values.get("ALERT_SECRETS_DIR") or "prometheus/secrets")


def unknown_files(values: dict[str, str]) -> list[str]:
    """Files among the secrets whose names no receiver reads: misspelled ones, probably."""
    folder = secrets_folder(values)
    known = {name.lower() for name in known_names()}
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if name not in known and not name.startswith("."))


def setting(values: dict[str, str], name: str) -> str:
    """A setting of the receivers, from its variable or from its file among the secrets."""
    try:
        return values.get(name) or (secrets_folder(values) / name.lower()).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def configured(values: dict[str, str]) -> dict[str, str]:
    """The receivers that are switched on: Alertmanager's kind by description."""
    found = {}
    for name, (description, kind) in RECEIVERS.items():
        if value := setting(values, name):
            found[description.format(value)] = kind
    return found


def describe(values: dict[str, str]) -> list[str]:
    """Lines that name the receivers of alerts and the files among the secrets that are not read."""
    people = ", ".join(configured(values)) or "nobody (see docs/alerts.md)"
    lines = [f"alerts go to: {people}"]
    for name in unknown_files(values):
        names = ", ".join(sorted(each.lower() for each in known_names()))
        lines.append(
            f"warning: {secrets_folder(values) / name} is not read; only these names are: {names}"
        )
    return lines


def send_test_alert(
    alertmanager: str, values: dict[str, str], progress: Callable[[str], None]
) -> bool:
    """Test that alerts get from Prometheus to Alertmanager, and from there to every receiver.

    The Watchdog, which always fires, shows that Prometheus evaluates rules and that its alerts
    arrive at Alertmanager. A new alert shows that Alertmanager's messages arrive at the receivers.

    Args:
        alertmanager: URL of the running Alertmanager.
        values: settings.
        progress: is called with each step and result.

    Returns:
        Whether the Watchdog arrived at Alertmanager, and every receiver accepted the alert.

    Raises:
        StackError: no receiver is set, or Alertmanager refuses the alert.
    """
    # The Watchdog's receiver gets nothing but the Watchdog.
    kinds = {kind for name, kind in configured(values).items() if "Watchdog" not in name}
    if not kinds:
        raise StackError("no receiver is set, so alerts reach nobody: see docs/alerts.md")
    arrives = _watchdog_arrives(alertmanager, progress)
    before = _counts(alertmanager)
    _post(alertmanager)
    progress(f"sent a test alert; waiting for {', '.join(sorted(kinds))} to accept it")
    accepted: set[str] = set()
    refused: set[str] = set()
    deadline = time.monotonic() + NOTIFIED_WITHIN
    while accepted | refused < kinds and time.monotonic() < deadline:
        time.sleep(0.5)
        now = _counts(alertmanager)
        for kind in kinds - accepted - refused:
            if now[1].get(kind, 0) > before[1].get(kind, 0):
                refused.add(kind)
                progress(f"{kind}: NOT accepted; ./stack logs alertmanager says why")
            elif now[0].get(kind, 0) > before[0].get(kind, 0):
                accepted.add(kind)
                progress(f"{kind}: accepted")
    for kind in sorted(kinds - accepted - refused):
        progress(f"{kind}: no answer within {NOTIFIED_WITHIN:.0f} s; see ./stack logs alertmanager")
    return arrives and accepted == kinds


def _watchdog_arrives(alertmanager: str, progress: Callable[[str], None]) -> bool:
    """Whether Alertmanager has recently got the Watchdog from Prometheus; reports the result."""
    deadline = time.monotonic() + WATCHDOG_WITHIN
    if not _watchdog(alertmanager):
        progress("waiting for the Watchdog, an alert that always fires")
    while not (last := _watchdog(alertmanager)) and time.monotonic() < deadline:
        time.sleep(0.5)
    age = datetime.now(UTC) - last if last else None
    if age and age < RECENT:
        progress("Prometheus' alerts arrive at Alertmanager")
        return True
    came = f"last arrived {age.seconds} s ago" if age else "has not arrived"
    progress(
        f"Prometheus' alerts do NOT arrive at Alertmanager: the Watchdog, which always fires, "
        f"{came}. ./stack status and ./stack logs prometheus say why"
    )
    return False


def _watchdog(alertmanager: str) -> datetime | None:
    """When Alertmanager last got the Watchdog."""
    query = urllib.parse.urlencode({"filter": 'alertname="Watchdog"'})
    try:
        with OPENER.open(f"{alertmanager}/api/v2/alerts?{query}", timeout=10) as response:
            alerts = json.load(response)
    except OSError as error:
        raise StackError(f"Alertmanager does not answer: {error}") from error
    return max((datetime.fromisoformat(alert["updatedAt"]) for alert in alerts), default=None)


def _post(alertmanager: str) -> None:
    now = datetime.now(UTC)
    alert = {
        "labels": {
            "alertname": "TestAlert",
            "severity": "page",
            "sent": now.isoformat(timespec="seconds"),  # a new one each time
        },
        "annotations": {
            "summary": "This is a test.",
            "description": "./stack test-alert sent it; nothing is wrong.",
        },
        "endsAt": (now + timedelta(minutes=1)).isoformat(),
    }
    request = urllib.request.Request(
        f"{alertmanager}/api/v2/alerts",
        json.dumps([alert]).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        OPENER.open(request, timeout=10).close()
    except (OSError, urllib.error.URLError) as error:
        raise StackError(f"Alertmanager did not accept the alert: {error}") from error


def _counts(alertmanager: str) -> tuple[dict[str, float], dict[str, float]]:
    """How many requests to receivers succeeded, and how many failed, by kind."""
    with OPENER.open(f"{alertmanager}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    tried, failed = _sum(lines, TRIED), _sum(lines, FAILED)
    return {kind: count - failed.get(kind, 0) for kind, count in tried.items()}, failed


def _sum(lines: list[str], pattern: re.Pattern[str]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for line in lines:
        if found := pattern.match(line):
            totals[found[1]] = totals.get(found[1], 0) + float(found[2])
    return totals
