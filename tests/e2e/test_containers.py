"""What the processes in the containers may do, as the kernel says."""

from __future__ import annotations

import pytest

from tests.stacks import ComposeStack, Stack, process_status


def test_no_process_has_more_rights_than_it_needs(stack: Stack) -> None:
    if not isinstance(stack, ComposeStack):
        pytest.skip("local processes are in no container")
    services = stack.compose("ps", "--services").split()
    assert len(services) >= 7
    for service in services:
        for process in stack.processes(service):
            status = process_status(process.pid)
            assert "0" not in status["Uid"].split() + status["Gid"].split(), process
            rights = [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
            assert {int(right, 16) for right in rights} == {0}, process
            assert status["NoNewPrivs"] == "1", process
        limits = stack.inspect(service)["HostConfig"]
        assert limits["ReadonlyRootfs"]
        assert 0 < limits["PidsLimit"] <= 2048
        assert 0 < limits["Memory"] <= 512 << 20
