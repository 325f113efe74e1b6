"""Break a stack under load: what clients get, what metrics count, which alert reports it, and when.

Each test prints a row of the table in docs/reliability.md at the end of the run.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator

import pytest

from tests.alerting import GUNICORN_TIMEOUT, faster_configuration
from tests.e2e.faults import FAULTS, Fault
from tests.load import Answer, Load
from tests.stacks import SMALL_CACHE, ComposeStack, Stack, launch, settle, wait_until

RATE = 40  # requests a second
CALM = 2 * RATE  # answers without a failure, after which a stack has recovered
WITHIN = 120.0  # seconds, for an alert or a recovery
COUNTED = "nginx_route_requests_total"


@pytest.fixture(scope="module")
def fast(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose alerts come faster."""
    if kind == "compose" and os.geteuid() != 0:
        pytest.skip("only root can send signals to processes in containers")
    folder = tmp_path_factory.mktemp(f"faults-{kind}")
    settings = faster_configuration(folder) | {"GUNICORN_TIMEOUT": str(GUNICORN_TIMEOUT)}
    with launch(kind, settings, SMALL_CACHE) as running:
        yield running


def firing(stack: Stack) -> set[str]:
    """The names of the alerts that fire, without the one that always does."""
    samples = stack.query('ALERTS{alertstate="firing", alertname!="Watchdog"}')
    return {sample["metric"]["alertname"] for sample in samples}


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
    try:
        wait_until(lambda: fault.alert not in firing(fast), WITHIN, "an earlier alert to end")
    except AssertionError as error:
        error.add_note(f"{fast.query('up')}")
        raise
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
