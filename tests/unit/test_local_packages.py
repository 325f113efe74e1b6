"""Fetching programs: what is on PATH is used, what can't be had is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local import packages
from local.settings import StackError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A PATH of one empty folder, and nothing fetched yet."""
    programs = tmp_path / "path"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(packages, "BIN", tmp_path / "bin")
    monkeypatch.setattr(packages, "PACKAGES", tmp_path / "packages")
    return programs


def install(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


def test_programs_on_path_are_used_under_either_name(folder: Path, tmp_path: Path) -> None:
    install(folder, "nginx", "envsubst", "prometheus", "promtool", "amtool")
    install(folder, "prometheus-alertmanager", "prometheus-nginx-exporter")
    packages.ensure_programs(pytest.fail)
    alertmanager = tmp_path / "bin" / "alertmanager"
    assert alertmanager.resolve() == folder / "prometheus-alertmanager"


def test_without_apt_what_is_missing_is_named_and_docker_pointed_at(folder: Path) -> None:
    install(folder, "nginx", "envsubst", "prometheus", "promtool", "nginx-prometheus-exporter")
    with pytest.raises(StackError, match=r"alertmanager, amtool.*Docker"):
        packages.ensure_programs(pytest.fail)


def test_a_link_to_a_program_that_is_gone_is_made_anew(folder: Path, tmp_path: Path) -> None:
    install(folder, *packages.PROGRAMS)
    link = tmp_path / "bin" / "promtool"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "gone")
    packages.ensure_programs(pytest.fail)
    assert link.resolve() == folder / "promtool"


def test_a_failing_command_tells_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"it broke:\n.*no-such-file"):
        packages._run(["cat", str(tmp_path / "no-such-file")], "it broke")
