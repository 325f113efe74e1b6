"""Both packages, built as wheels and run alone in an empty virtual environment."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from local.settings import ROOT
from tests.access_lines import HIT
from tests.stacks import free_port, wait_until

EXPORTER = ROOT / "nginx" / "access_exporter"
TELEMETRY = ROOT / "flask" / "telemetry"
MODULES = {EXPORTER: "nginx_access_exporter", TELEMETRY: "gunicorn_flask_telemetry"}
# The tests share what is built, so they run in one process.
pytestmark = pytest.mark.xdist_group("packages")

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]

APP = """
from flask import Flask
from gunicorn_flask_telemetry.flask_metrics import FlaskMetrics

app = Flask(__name__)
metrics = FlaskMetrics(app)
app.get("/hello/<name>")(lambda name: f"Hello {name}")
"""
CONF = """
from gunicorn_flask_telemetry.hooks import *

wsgi_app = "app:app"
workers = 2
worker_class = "sync"
"""


def run(*command: str | Path, **options: object) -> str:
    """Run a command and return its output; if it fails, fail the test with the output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, target: Path, kind: str = "wheel") -> Path:
    """Builds a wheel or a source distribution."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", target]
    run(*build, cwd=source)
    (built,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def revision() -> str:
    """The revision of this checkout."""
    return run("git", "-C", ROOT, "rev-parse", "--short=12", "HEAD").strip()


def read(wheel: Path, name: str) -> str:
    """A file of a wheel."""
    with zipfile.ZipFile(wheel) as files:
        return files.read(name).decode()


def names(wheel: Path) -> set[str]:
    """The names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as files:
        return set(files.namelist())


def install(folder: Path, *requirements: str | Path) -> Path:
    """Installs these into a virtual environment of their own; returns its programs' folder."""
    if not folder.exists():
        venv.create(folder, with_pip=False)
    programs = folder / "bin"
    run(*PIP, "--python", programs / "python", "install", *requirements)
    return programs


@contextmanager
def running(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    """Runs a program that finds no other files of this project than the installed ones."""
    with subprocess.Popen(command, cwd=cwd, env=env or {}) as process:
        try:
            yield
        finally:
            process.terminate()


def get(url: str) -> requests.Response:
    """The answer of a server, as soon as it answers."""
    return wait_until(lambda: requests.get(url, timeout=5), 60, url)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """For each package's folder, the wheel that was built from this checkout."""
    return {source: build(source, tmp_path_factory.mktemp("wheel")) for source in MODULES}


@pytest.mark.parametrize(("source", "module"), MODULES.items(), ids=MODULES.values())
def test_a_wheel_has_one_package_its_revision_and_a_readme(
    wheels: dict[Path, Path], source: Path, module: str
) -> None:
    wheel = wheels[source]
    info = next(name for name in names(wheel) if name.endswith("/METADATA")).partition("/")[0]
    assert {name.partition("/")[0] for name in names(wheel)} == {module, info}
    modules = {f"{module}/{path.name}" for path in (source / module).glob("*.py")}
    assert modules | {f"{module}/_revision.py"} == {
        name for name in names(wheel) if name.startswith(module + "/")
    }
    assert read(wheel, f"{module}/_revision.py") == f"REVISION = {revision()!r}\n"
    assert "\n# " in read(wheel, f"{info}/METADATA")


@pytest.mark.parametrize(("source", "module"), MODULES.items(), ids=MODULES.values())
def test_a_source_distribution_outside_git_builds_the_same_wheel_without_revision(
    wheels: dict[Path, Path], source: Path, module: str, tmp_path: Path
) -> None:
    with tarfile.open(build(source, tmp_path, "sdist")) as files:
        files.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build(unpacked, tmp_path)
    assert names(wheel) == names(wheels[source])
    assert read(wheel, f"{module}/_revision.py") == "REVISION = 'unknown'\n"


def test_pip_installs_a_package_from_its_folder(tmp_path: Path) -> None:
    programs = install(tmp_path / "venv", EXPORTER)
    assert run(programs / "nginx-access-exporter", "--version", env={}).endswith(
        f"(revision {revision()})\n"
    )


def test_the_exporter_runs_alone_with_the_oldest_and_newest_dependencies(
    wheels: dict[Path, Path], tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(HIT + b"\n")
    metadata = next(name for name in names(wheels[EXPORTER]) if name.endswith("/METADATA"))
    needed = re.search(r"Requires-Dist: ([\w-]+).*>=([\d.]+)", read(wheels[EXPORTER], metadata))
    assert needed
    for requirements in ([wheels[EXPORTER]], [f"{needed[1]}=={needed[2]}.*"]):
        programs = install(tmp_path / "venv", *requirements)
        address = f"127.0.0.1:{free_port()}"
        command = [programs / "nginx-access-exporter", f"--log.path={log}"]
        with running(*command, f"--web.listen-address={address}", cwd=tmp_path):
            metrics = get(f"http://{address}/metrics").text.splitlines()
        labels = 'cache="HIT",method="GET",route="/cache-me",status="200"'
        assert f"nginx_route_requests_total{{{labels}}} 1.0" in metrics
        labels = f'revision="{revision()}",version="0.1.0"'
        assert f"nginx_access_exporter_build_info{{{labels}}} 1.0" in metrics


def test_the_telemetry_runs_alone(wheels: dict[Path, Path], tmp_path: Path) -> None:
    programs = install(tmp_path / "venv", wheels[TELEMETRY])
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(CONF)
    port, metrics_port = free_port(), free_port()
    environment = {"GUNICORN_METRICS_BIND": f"127.0.0.1:{metrics_port}"}
    command = [programs / "gunicorn", f"--bind=127.0.0.1:{port}"]
    with running(*command, cwd=tmp_path, env=environment):
        answer = get(f"http://127.0.0.1:{port}/hello/you")
        # A worker counts a request after its answer.
        labels = 'method="GET",route="/hello/<name>",status="200"'
        counted = f"flask_http_request_total{{{labels}}} 1.0"
        metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        wait_until(lambda: counted in get(metrics_url).text.splitlines(), 30, counted)
        metrics = get(metrics_url).text.splitlines()
    assert (answer.text, answer.headers["X-Route"]) == ("Hello you", "/hello/<name>")
    assert "gunicorn_workers 2.0" in metrics
    labels = f'revision="{revision()}",version="0.1.0"'
    assert f"gunicorn_flask_telemetry_build_info{{{labels}}} 1.0" in metrics
