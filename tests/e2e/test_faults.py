"""Break a stack under load: what clients get, what metrics count, which alert reports it, and when.

Each test prints a row of the table in docs/reliability.md at the end of the run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
import requests

from local.processes import Processes
from local.settings import ROOT
from tests.alerting import GUNICORN_TIMEOUT, faster_configuration
from tests.e2e.faults import FAULTS, Fault
from tests.load import Answer, Load
from tests.stacks import SMALL_DISKS, ComposeStack, Stack, launch, settle, wait_until

RATE = 40  # requests a second
CALM = 2 * RATE  # answers without a failure, after which a stack has recovered
WITHIN = 120.0  # seconds, for an alert or a recovery
ENDED_WITHIN = 400.0  # seconds, for the alert of an earlier fault
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")  # Debian's libfaketime
COUNTED = "nginx_route_requests_total"


@pytest.fixture(scope="module")
def fast(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose alerts come faster."""
    if kind == "compose" and os.geteuid() != 0:
        pytest.skip("only root can send signals to processes in containers")
    folder = tmp_path_factory.mktemp(f"faults-{kind}")
    settings = faster_configuration(folder) | {"GUNICORN_TIMEOUT": str(GUNICORN_TIMEOUT)}
    with launch(kind, settings, SMALL_DISKS) as running:
        yield running


def firing(stack: Stack) -> set[str]:
    """The names of the alerts that fire, without the one that always does.

    Not from the series ALERTS: a Prometheus whose disk is full cannot store it.
    """
    alerts = requests.get(f"{stack.prometheus}/api/v1/alerts", timeout=10).json()["data"]["alerts"]
    names = {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}
    return names - {"Watchdog"}


def calm(load: Load) -> Callable[[], bool]:
    """Whether the latest requests have all succeeded."""
    began = time.monotonic()

    def is_calm() -> bool:
        latest = [each for each in load.answers if each.began > began][-CALM:]
        return len(latest) == CALM and not any(each.failed for each in latest)

    return is_calm


def settled(stack: Stack) -> float:
    """What nginx-access-exporter has counted, once that no longer changes.

    nginx writes its lines at least once a second.
    """
    return settle(lambda: stack.total("nginx-access-exporter", COUNTED), 2, 60, "the counts")


def with_method(answers: list[Answer], method: str) -> int:
    """How many of these requests had this method."""
    return sum(each.method == method for each in answers)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            each,
            id=re.sub(r"\W+", "-", each.name),
            marks=() if each.quick else pytest.mark.all_faults,
        )
        for each in FAULTS
    ],
)
def test_a_stack_recovers(
    fast: Stack, fault: Fault, record_property: Callable[[str, object], None]
) -> None:
    if fast.kind not in fault.kinds:
        record_property("row", f"| {fault.name} | {fast.kind} | {fault.why} |")
        pytest.skip(fault.why)
    if fault.needs and not fast.query(fault.needs):
        pytest.skip(f"no {fault.needs}")
    wait_until(lambda: fault.alert not in firing(fast), ENDED_WITHIN, "an earlier alert to end")
    # An alert on an increase needs a sample from before the fault.
    wait_until(lambda: fast.query('up{job="flask-app"} == 1'), WITHIN, "a scrape of flask-app")
    before = firing(fast)
    counted = settled(fast)
    with Load(f"{fast.http}{fault.path}", RATE) as load:
        wait_until(calm(load), WITHIN, "load")
        began = time.monotonic()
        fault.cause(fast)
        try:
            if fault.alert:
                wait_until(lambda: fault.alert in firing(fast), WITHIN, fault.alert)
                reported = f"{fault.alert} after {time.monotonic() - began:.0f} s"
        finally:
            mended = time.monotonic() if fault.mended else began
            fault.mend(fast)
        wait_until(calm(load), WITHIN, "no request to fail any more")
    if isinstance(fast, ComposeStack):
        fast.start("nginx-access-exporter")  # its address is another one if it was killed
    answered = sum(each.status > 0 for each in load.answers)

    grown = settled(fast) - counted
    if fault.loses_counts:
        lost = f"{answered - grown:.0f} of {answered} lost"
    else:
        assert answered <= grown <= len(load.answers)
        lost = "exact"
    # In a list, since an empty set is false.
    others = wait_until(lambda: [firing(fast)], 30, "Prometheus to answer")[0] - before
    assert "ServiceRestarting" not in others
    if not fault.alert:
        reported = ", ".join(others) or "none"
    last = max((each.ended for each in load.failed), default=mended)
    failed = [with_method(load.failed, method) for method in ("GET", "POST")]
    record_property(
        "row",
        f"| {fault.name} | {fast.kind} | {failed[0]}, {failed[1]} of {len(load.answers)} "
        f"| {max(last - mended, 0):.1f} s | {lost} | {reported} |",
    )


@contextlib.contextmanager
def wrong_clock(stack: Stack, service: str, hours: int) -> Iterator[None]:
    """A local service whose clock is this much fast, for as long as the context lasts."""
    environment = Processes(stack.run).saved_environment()
    variables = {f"ENV_{name}": value for name, value in environment.items()}
    config = RawConfigParser()
    config.read(ROOT / "local" / "supervisord.conf")
    command = shlex.split(config[f"program:{service}"]["command"] % variables)
    clock = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME": f"{hours:+d}h",
        "PYTHONPATH": environment["APP_PYTHONPATH"],
    }
    stack.stop(service)
    with subprocess.Popen(
        command,
        cwd=environment["APP_DIR"],
        env=environment | clock,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield
        finally:
            process.terminate()
    stack.start(service)


@pytest.mark.all_faults
@pytest.mark.parametrize("hours", [1, -1], ids=["fast", "slow"])
@pytest.mark.parametrize("service", ["nginx-proxy", "flask-app"])
def test_a_wrong_clock_changes_neither_answers_nor_counts(
    fast: Stack, service: str, hours: int, record_property: Callable[[str, object], None]
) -> None:
    name = f"{service}'s clock is an hour {'fast' if hours > 0 else 'slow'}"
    if fast.kind != "local":
        record_property("row", f"| {name} | {fast.kind} | containers share the machine's clock |")
        pytest.skip("containers share the machine's clock")
    if not FAKETIME.exists():
        pytest.skip("apt-get install libfaketime")
    server = fast.http if service == "nginx-proxy" else fast.flask
    with wrong_clock(fast, service, hours):
        wait_until(lambda: requests.get(fast.http, timeout=5).ok, 30, "an answer")
        date = parsedate_to_datetime(requests.get(server, timeout=5).headers["Date"]).timestamp()
        assert date - time.time() == pytest.approx(hours * 3600, abs=60)
        before, counted = firing(fast), settled(fast)
        with Load(f"{fast.http}/?size=10", RATE) as load:
            wait_until(lambda: len(load.answers) > 10 * CALM, WITHIN, "enough answers")
        grown = settled(fast) - counted
        others = firing(fast) - before
    assert load.failed == []
    assert grown == len(load.answers)
    assert others == set()
    record_property(
        "row", f"| {name} | local | 0, 0 of {len(load.answers)} | 0.0 s | exact | none |"
    )
