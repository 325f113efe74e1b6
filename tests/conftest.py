"""What all tests share: kinds of stacks, an option, a summary, a failure if anything still runs."""

from __future__ import annotations

import collections
import os
import re
import time
from pathlib import Path

import pytest

from tests import remains
from tests.stacks import require_engine

ENDED_WITHIN = 10.0  # seconds, after the last test
LEFT = pytest.StashKey[list[str]]()
GROUP = re.compile(r"@[\w-]+$")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for faults that take long."""
    parser.addoption("--all-faults", action="store_true", help="also faults that take long")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run all tests of one stack in one process. Stacks mostly wait, so several run at once.

    Leaves out faults that take long, without a line for each.
    """
    if not config.getoption("--all-faults"):
        long = [item for item in items if item.get_closest_marker("all_faults")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    for item in items:
        if isinstance(item, pytest.Function) and item.path.parent.name in ("e2e", "fuzz"):
            module = "shared" if "stack" in item.fixturenames else item.path.stem
            kind = item.callspec.params.get("kind", "") if hasattr(item, "callspec") else ""
            item.add_marker(pytest.mark.xdist_group(f"{module}-{kind}"))


@pytest.hookimpl(tryfirst=True)  # before pytest remembers which tests failed
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remove the group that pytest-xdist appends to a test's name: --last-failed can't find it.

    Use it with --numprocesses=0: in pytest-xdist's own processes, the names keep the group.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        report.nodeid = GROUP.sub("", report.nodeid)


@pytest.fixture(scope="session", params=["local", "compose"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of stack: local processes or Compose."""
    if request.param == "compose":
        require_engine("stack in containers")
    return request.param


@pytest.hookimpl(trylast=True)  # after pytest-xdist has ended its own processes
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if one of its processes or containers still exists."""
    if hasattr(session.config, "workerinput"):
        return
    folder: Path = session.config._tmp_path_factory.getbasetemp()
    deadline = time.monotonic() + ENDED_WITHIN
    while (left := remains.processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    session.config.stash[LEFT] = left + remains.containers()
    if session.config.stash[LEFT] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped, and why; and what still runs."""
    skipped = terminalreporter.stats.get("skipped", [])
    # The place and the reason of a skip, as pytest reports them.
    reasons = collections.Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ").partition("\n")[0] for report in skipped
    )
    if reasons:
        text = "; ".join(f"{count} ({reason})" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"skipped: {text}")
    rows = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "row" and report.when == "teardown"
    ]
    for row in sorted(rows):
        terminalreporter.write_line(row)
    for left in terminalreporter.config.stash.get(LEFT, []):
        terminalreporter.write_line(f"the tests left this running: {left}", red=True)
