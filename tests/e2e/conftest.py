"""The stack that the end-to-end tests share: local processes first, then Compose."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.stacks import Stack, engine_missing, launch


@pytest.fixture(scope="session", params=["local", "compose"])
def kind(request: pytest.FixtureRequest) -> str:
    """How stacks are started."""
    if request.param == "compose" and engine_missing():
        reason = f"no stack in containers: {engine_missing()}"
        if os.environ.get("STACK_REQUIRE_DOCKER") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="session")
def stack(kind: str) -> Iterator[Stack]:
    """A running stack; a test that stops or changes a part of it puts that back."""
    with launch(kind) as running:
        yield running
