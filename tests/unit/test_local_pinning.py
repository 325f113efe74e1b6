"""`./stack lock` pins packages; a folder with a package stands in for PyPI."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from local import packages, pinning
from local.settings import StackError


@pytest.fixture(scope="module")
def uv() -> None:
    """The program that pins, which only `./stack lock` fetches."""
    try:
        packages.ensure_lock(lambda _: None)
    except StackError as error:
        pytest.skip(f"uv can't be fetched: {str(error).splitlines()[0]}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uv: None) -> Path:
    """A project whose only folder needs the package `one`."""
    del uv
    info = {"METADATA": "Metadata-Version: 2.1\nName: one\nVersion: 1.2\n", "RECORD": ""}
    info["WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(tmp_path / "one-1.2-py3-none-any.whl", "w") as wheel:
        for name, text in info.items():
            wheel.writestr(f"one-1.2.dist-info/{name}", text)
    monkeypatch.setattr(pinning, "ROOT", tmp_path)
    monkeypatch.setattr(pinning, "FOLDERS", (tmp_path / "app",))
    (tmp_path / "app").mkdir()
    (tmp_path / "app/requirements.in").write_text("one>=1\n")
    return tmp_path


def lock(folder: Path) -> None:
    assert pinning.lock(["--no-index", f"--find-links={folder}"]) == 0


def test_packages_are_pinned_with_their_hashes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock(folder)
    pinned = (folder / "app/requirements.txt").read_text()
    assert "one==1.2 \\\n    --hash=sha256:" in pinned
    assert "#    uv pip compile " in pinned  # how to make it again
    assert str(folder) not in pinned
    assert "app/requirements.txt is up to date" in capsys.readouterr().out


def test_a_package_that_is_not_found_is_named_and_the_file_stays(folder: Path) -> None:
    lock(folder)
    before = (folder / "app/requirements.txt").read_text()
    (folder / "app/requirements.in").write_text("one>=1\ntwo>=2\n")
    with pytest.raises(StackError, match=r"app/requirements.txt could not be made:\n(.|\n)*two"):
        lock(folder)
    assert (folder / "app/requirements.txt").read_text() == before
