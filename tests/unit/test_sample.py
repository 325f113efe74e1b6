"""The tests check the stack's own files, and not those of another application in flask/."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import sample


@pytest.fixture
def flask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The flask folder of a clone, with the sample application and a package beside it."""
    monkeypatch.setattr(sample, "ROOT", tmp_path)
    monkeypatch.setattr(sample, "FLASK", tmp_path / "flask")
    (tmp_path / "flask/blog/templates").mkdir(parents=True)
    for name in ("README.md", "flask/gunicorn.conf.py", "flask/blog/templates/index.html"):
        (tmp_path / name).touch()
    (tmp_path / "flask/app.py").write_text('"""The sample application. Replace it."""\n')
    (tmp_path / "flask/demo.py").write_text('"""Routes that are slow or fail, on demand."""\n')
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return tmp_path / "flask"


def test_packages_beside_the_sample_are_foreign(flask: Path) -> None:
    assert flask.is_dir()
    assert sample.is_in_place()
    assert sample.foreign_files() == ["flask/blog"]
    assert "flask/app.py" in sample.tracked()
    assert "flask/blog/templates/index.html" not in sample.tracked()


def test_an_application_in_place_of_the_sample_is_foreign(flask: Path) -> None:
    (flask / "app.py").write_text("from blog import app\n")
    (flask / "demo.py").unlink()
    assert not sample.is_in_place()
    assert not sample.demo_is_in_place()
    assert sorted(sample.tracked()) == ["README.md", "flask/gunicorn.conf.py"]
    assert not sample.is_missing(flask / "demo.py")
    assert sample.is_missing(flask / "gunicorn_settings.py")
