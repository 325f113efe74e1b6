"""The stacks that the end-to-end tests share: one of local processes, one of containers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.stacks import Stack, engine_missing, launch


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests of one stack in one process. Stacks mostly wait, so several run at once."""
    for item in items:
        if isinstance(item, pytest.Function) and "e2e" in item.path.parts:
            module = "shared" if "stack" in item.fixturenames else item.path.stem
            kind = item.callspec.params.get("kind", "") if hasattr(item, "callspec") else ""
            item.add_marker(pytest.mark.xdist_group(f"{module}-{kind}"))


@pytest.fixture(scope="session", params=["local", "compose"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of stack: local processes or Compose."""
    if request.param == "compose" and engine_missing():
        reason = f"no stack in containers: {engine_missing()}"
        if os.environ.get("STACK_REQUIRE_DOCKER") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="session")
def stack(kind: str) -> Iterator[Stack]:
    """A running stack; a test that stops or changes a part of it must restore it."""
    with launch(kind) as running:
        yield running
