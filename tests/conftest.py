"""What all tests share: a line about skipped tests, and a failure if anything still runs."""

from __future__ import annotations

import collections
import time
from pathlib import Path

import pytest

from tests import remains

ENDED_WITHIN = 10.0  # seconds, after the last test
LEFT = pytest.StashKey[list[str]]()


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
    for left in terminalreporter.config.stash.get(LEFT, []):
        terminalreporter.write_line(f"the tests left this running: {left}", red=True)
