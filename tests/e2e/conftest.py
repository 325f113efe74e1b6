"""The stacks that the end-to-end tests share: one of local processes, one of containers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stacks import Stack, launch


@pytest.fixture(scope="session")
def stack(kind: str) -> Iterator[Stack]:
    """A running stack; a test that stops or changes a part of it must restore it."""
    with launch(kind) as running:
        yield running
