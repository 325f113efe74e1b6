"""Fetching programs: those on PATH are used, those that can't be fetched are named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import packages
from local.settings import StackError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A PATH that has one empty folder; nothing has been fetched."""
    programs = tmp_path / "path"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(packages, "BIN", tmp_path / "bin")
    monkeypatch.setattr(packages, "PACKAGES", tmp_path / "packages")
    monkeypatch.setattr(packages, "ARCHIVES", tmp_path / "archives")
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


def test_without_apt_missing_programs_are_named_and_docker_is_suggested(folder: Path) -> None:
    install(folder, "nginx", "envsubst", "prometheus", "promtool", "nginx-prometheus-exporter")
    with pytest.raises(StackError, match=r"alertmanager, amtool.*Docker"):
        packages.ensure_programs(pytest.fail)


def test_a_dangling_link_is_replaced(folder: Path, tmp_path: Path) -> None:
    install(folder, *packages.PROGRAMS)
    link = tmp_path / "bin" / "promtool"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "gone")
    packages.ensure_programs(pytest.fail)
    assert link.resolve() == folder / "promtool"


def test_a_program_put_on_path_later_is_used_and_reported(folder: Path, tmp_path: Path) -> None:
    fetched = tmp_path / "packages/usr/bin"
    fetched.mkdir(parents=True)
    install(folder, *(name for name in packages.PROGRAMS if name != "prometheus"))
    install(fetched, "prometheus")
    packages.ensure_programs(pytest.fail)
    link = tmp_path / "bin" / "prometheus"
    assert link.resolve() == fetched / "prometheus"
    install(folder, "prometheus")
    messages: list[str] = []
    packages.ensure_programs(messages.append)
    assert link.resolve() == folder / "prometheus"
    assert messages == [f"prometheus is now {folder}/prometheus, no longer {fetched}/prometheus"]


def test_our_own_links_on_path_do_not_count_as_programs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(folder, *packages.PROGRAMS)
    packages.ensure_programs(pytest.fail)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{folder}")
    packages.ensure_programs(pytest.fail)
    assert (tmp_path / "bin" / "nginx").readlink() == folder / "nginx"


def test_a_missing_network_is_named_as_the_cause(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt = """#!/bin/sh
    case "$*" in
    *update) echo "W: Failed to fetch http://deb.example.com: Temporary failure resolving it" ;;
    *) echo "E: Unable to locate package nginx"; exit 100 ;;
    esac
    """
    install(folder, "dpkg-deb")
    (folder / "apt-get").write_text(apt)
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setattr(packages, "LOCAL", folder)
    with pytest.raises(StackError, match=r"The network.*cause:\nW: Failed to fetch") as caught:
        packages.ensure_programs(lambda _: None)
    assert "Unable to locate" not in str(caught.value)


def test_the_output_of_a_failing_command_is_shown(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"it broke:\n.*no-such-file"):
        packages._run(["cat", str(tmp_path / "no-such-file")], "it broke")


def test_packages_that_an_interrupted_start_fetched_are_unpacked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n"
    )
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/prometheus").write_text("whole")
    (tmp_path / "archives").mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.defpath}")
    packages._run(["dpkg-deb", "--build", str(root), str(tmp_path / "archives/x.deb")], "no")
    half = tmp_path / "packages/usr/bin/prometheus"
    half.parent.mkdir(parents=True)
    half.write_text("ha")
    install(folder, *packages.PROGRAMS)
    packages.ensure_programs(lambda _: None)
    assert half.read_text() == "whole"
    assert not list((tmp_path / "archives").glob("*.deb"))


def test_an_environment_belongs_to_one_folder_and_one_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = packages._venv_identity()
    monkeypatch.setattr(packages, "VENV", Path("/elsewhere"))
    assert packages._venv_identity() != here
