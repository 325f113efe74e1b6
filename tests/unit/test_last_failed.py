"""A failed test can be run again, as continuous integration does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from local.settings import ROOT

HOOKS = "pytest_addoption, pytest_collection_modifyitems, pytest_runtest_logreport"
TESTS = """
import pytest

@pytest.mark.parametrize("name", ["a", "b@c"])
def test_of_a_group(name):
    assert name == "a"

def test_without_parameters():
    assert False
"""
OTHER_TEST = "def test_of_no_group(): assert False"


def test_last_failed_finds_the_tests_of_a_group(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(f"from tests.conftest import {HOOKS}")
    (tmp_path / "e2e").mkdir()  # whose tests are grouped by module
    (tmp_path / "e2e" / "test_example.py").write_text(TESTS)
    (tmp_path / "test_other.py").write_text(OTHER_TEST)
    assert "3 failed, 1 passed in" in run(tmp_path, "--numprocesses=1")
    assert "3 failed in" in run(tmp_path, "--numprocesses=0", "--last-failed")


def run(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cloudcoil", "--dist=loadgroup"]
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    return subprocess.run(
        [*command, *options],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
