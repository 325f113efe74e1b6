"""What all tests share: one line that reports skipped tests."""

from __future__ import annotations

import collections

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    # The place and the reason of a skip, as pytest reports them.
    reasons = collections.Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ").partition("\n")[0] for report in skipped
    )
    if reasons:
        text = "; ".join(f"{count} ({reason})" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"skipped: {text}")
