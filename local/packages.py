"""Fetches what local processes need: servers as Debian or Ubuntu packages, Python's from PyPI.

Everything goes to `.local/`, apt's state included. Nothing is installed on the system and root is
not needed: the packages are only unpacked. Programs that are on PATH are used from there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from local.settings import (
    BIN,
    LOCAL,
    PACKAGES,
    ROOT,
    VENV,
    StackError,
    app_directory,
    app_packages,
)

# For each program: its names (upstream's, Debian's), and the Debian package that contains it.
PROGRAMS = {
    "nginx": (("nginx",), "nginx"),
    "envsubst": (("envsubst",), "gettext-base"),
    "prometheus": (("prometheus",), "prometheus"),
    "promtool": (("promtool",), "prometheus"),
    "alertmanager": (("alertmanager", "prometheus-alertmanager"), "prometheus-alertmanager"),
    "amtool": (("amtool",), "prometheus-alertmanager"),
    "nginx-prometheus-exporter": (
        ("nginx-prometheus-exporter", "prometheus-nginx-exporter"),
        "prometheus-nginx-exporter",
    ),
}
SERVICE_REQUIREMENTS = (
    ROOT / "flask" / "requirements.txt",
    ROOT / "nginx" / "access_exporter" / "requirements.txt",
    ROOT / "local" / "requirements.txt",
    ROOT / "local" / "requirements-top.txt",
)
TOP_REQUIREMENTS = SERVICE_REQUIREMENTS[-1]
# The packages of this repository; the requirements above include their dependencies.
SERVICE_PACKAGES = (ROOT / "flask" / "telemetry", ROOT / "nginx" / "access_exporter")
LOCK_REQUIREMENTS = ROOT / "local" / "requirements-lock.txt"
APP_CONSTRAINTS = ROOT / "flask" / "requirements.in"
TEST_REQUIREMENTS = (ROOT / "tests" / "requirements.txt",)
APT = (
    "apt-get",
    "-qq",
    "-o",
    f"Dir::State={LOCAL}/apt",
    "-o",
    f"Dir::Cache={LOCAL}/apt",
    "-o",
    "Dir::State::status=/var/lib/dpkg/status",
    "-o",
    "Debug::NoLocking=1",
)

ARCHIVES = LOCAL / "apt/archives"
# What apt-get and pip say if a name or an address can't be reached.
NO_NETWORK = (
    r"could not resolve|temporary failure|name resolution|network is unreachable|no route to host"
    r"|could not connect|connection (refused|timed out)|failed to establish a new connection"
)

RELOCATED = {
    "prometheus": "/usr/share/prometheus/web",
    "prometheus-alertmanager": "/usr/share/prometheus/alertmanager",
}

Progress = Callable[[str], None]


def ensure_programs(progress: Progress) -> None:
    """Link every program of PROGRAMS into `.local/bin`, under upstream's name.

    Raises:
        StackError: a program is neither on PATH nor in the distribution's packages.
    """
    BIN.mkdir(parents=True, exist_ok=True)
    if any(ARCHIVES.glob("*.deb")):
        progress("unpacking packages that an interrupted start had fetched")
        _unpack_archives()
    missing = _link_all(progress)
    if not missing:
        return
    packages = sorted({PROGRAMS[program][1] for program in missing})
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise StackError(
            f"not found on PATH: {', '.join(missing)}. Install them, or use Docker "
            "(docker compose up): ./stack can fetch only Debian's and Ubuntu's packages."
        )
    progress(f"fetching {', '.join(packages)} from the distribution's packages")
    _unpack(packages)
    missing = _link_all(progress)
    if missing:
        raise StackError(f"the packages {packages} hold no {', '.join(missing)}: use Docker")


def ensure_python(progress: Progress, *, tests: bool) -> None:
    """Install the services' packages (and the tests') into the environment `.local/venv`."""
    requirements = SERVICE_REQUIREMENTS + (TEST_REQUIREMENTS if tests else ())
    for path in requirements:
        _ensure_requirements(path, progress)
    for folder in SERVICE_PACKAGES:
        _ensure_package(folder, progress)


def ensure_app(values: dict[str, str], progress: Progress) -> None:
    """Install what the application's requirements.txt names, for the application alone.

    Raises:
        StackError: pip can't, or a version does not suit the telemetry (flask/requirements.in).
    """
    requirements = app_directory(values) / "requirements.txt"
    if not requirements.is_file() or requirements in SERVICE_REQUIREMENTS:
        return
    target = app_packages(values)
    stamp = target / "installed"
    digest = hashlib.sha256(
        requirements.read_bytes() + APP_CONSTRAINTS.read_bytes() + _venv_identity().encode()
    ).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    progress(f"installing the app's {requirements}")
    shutil.rmtree(target, ignore_errors=True)
    options = ["--target", str(target), "--constraint", str(APP_CONSTRAINTS)]
    _pip(["--requirement", str(requirements), *options], f"pip could not install {requirements}")
    stamp.write_text(digest)


def ensure_top(progress: Progress) -> None:
    """Install only what `./stack top` needs into `.local/venv`."""
    _ensure_requirements(TOP_REQUIREMENTS, progress)


def ensure_lock(progress: Progress) -> None:
    """Install what `./stack lock` needs into `.local/venv`."""
    _ensure_requirements(LOCK_REQUIREMENTS, progress)


def mime_types() -> Path:
    """The path of nginx's table of file types, which its packages install with its configuration.

    Raises:
        StackError: it was not found.
    """
    nginx = (BIN / "nginx").resolve()
    built = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr
    configuration = re.search(r"--conf-path=(\S+)", built)
    folders = [nginx.parents[2] / "etc/nginx"]  # Debian's layout, below the same root
    if configuration:
        folders.append(Path(configuration[1]).parent)
    for folder in folders:
        if (folder / "mime.types").is_file():
            return folder / "mime.types"
    raise StackError(f"no mime.types of {nginx} in {' or '.join(map(str, folders))}: use Docker")


def programs() -> dict[str, Path]:
    """The paths of the programs of PROGRAMS that are installed or fetched."""
    found = {program: _find(program) for program in PROGRAMS}
    return {program: path for program, path in found.items() if path}


def _find(program: str) -> Path | None:
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    # Skip our own links. An ordinary user's PATH often lacks sbin, which contains nginx.
    folders = [folder for folder in folders if folder and Path(folder) != BIN]
    folders += ["/usr/sbin", str(PACKAGES / "usr/bin"), str(PACKAGES / "usr/sbin")]
    for name in PROGRAMS[program][0]:
        if found := shutil.which(name, path=os.pathsep.join(folders)):
            return Path(found)
    return None


def _link_all(progress: Progress) -> list[str]:
    """Link each program into `.local/bin`; return the names of those that were not found."""
    found = programs()
    for program, path in found.items():
        link = BIN / program
        if link.is_symlink() and link.readlink() == path:
            continue
        if link.exists():
            progress(f"{program} is now {path}, no longer {link.readlink()}")
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    return [program for program in PROGRAMS if program not in found]


def _unpack(packages: list[str]) -> None:
    """Fetch packages, with the dependencies that the system lacks, and unpack them."""
    (LOCAL / "apt/lists/partial").mkdir(parents=True, exist_ok=True)
    (ARCHIVES / "partial").mkdir(parents=True, exist_ok=True)
    # This succeeds even if no list could be fetched; then the install reports unknown packages.
    updated = _run([*APT, "update"], "apt-get could not read the package lists")
    install = [*APT, "install", "--yes", "--download-only", "--no-install-recommends", *packages]
    try:
        _run(install, "apt-get could not fetch the packages")
    except StackError as error:
        if not updated.strip():
            raise
        raise StackError(_explain("apt-get could not read the package lists", updated)) from error
    _unpack_archives()


def _unpack_archives() -> None:
    PACKAGES.mkdir(parents=True, exist_ok=True)
    archives = sorted(ARCHIVES.glob("*.deb"))
    for archive in archives:
        _run(["dpkg-deb", "-x", str(archive), str(PACKAGES)], f"{archive} could not be unpacked")
    _relocate()
    # Deleted only now: if this start is interrupted, the next one unpacks them again.
    for archive in archives:
        archive.unlink()


def _relocate() -> None:
    """Let unpacked programs find their files, whose absolute paths Debian compiles into them.

    Replaces each path by a relative one of the same length; local/supervisord.conf starts each
    program in the right folder. (Alertmanager does not start without its templates.)
    """
    for name, folder in RELOCATED.items():
        program = PACKAGES / "usr/bin" / name
        if program.is_file():
            here = (b"./" * len(folder))[: len(folder)]
            # In a new file, because the old one may be running.
            relocated = program.with_suffix(".new")
            relocated.write_bytes(program.read_bytes().replace(folder.encode(), here))
            relocated.chmod(0o755)
            relocated.replace(program)
    # A page's files may be installed on the system, so apt did not fetch them.
    for link in (PACKAGES / "usr/share/prometheus/web/static").glob("*"):
        if not link.exists():
            inside = Path(os.path.normpath(link.parent / link.readlink()))
            link.unlink()
            link.symlink_to(Path("/", inside.relative_to(PACKAGES)))


def _ensure_requirements(path: Path, progress: Progress) -> None:
    """Install a requirements file, unless this environment has that version of it."""
    _install_once(path, path.read_bytes(), ["--requirement", str(path)], progress)


def _ensure_package(folder: Path, progress: Progress) -> None:
    """Install a package of this repository, unless this environment has that version of it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(
        os.fsencode(path) + path.read_bytes() for path in files if "__pycache__" not in path.parts
    )
    # pip refuses local folders with --require-hashes, so the requirements were installed before.
    options = ["--no-deps", "--no-build-isolation", "--force-reinstall", str(folder)]
    _install_once(folder, content, options, progress)


def _install_once(path: Path, content: bytes, options: list[str], progress: Progress) -> None:
    name = path.relative_to(ROOT)
    digest = hashlib.sha256(content + _venv_identity().encode()).hexdigest()
    stamp = VENV / "installed" / str(name).replace("/", "_")
    if stamp.is_file() and stamp.read_text() == digest:
        return
    _ensure_venv(progress)
    progress(f"installing {name}")
    _pip(options, f"pip could not install {name}")
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(digest)


def _pip(arguments: list[str], failure: str) -> None:
    """Have the virtual environment's pip install something."""
    python = str(VENV / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run([*pip, *arguments], failure)


def _ensure_venv(progress: Progress) -> Path:
    """Make a virtual environment with pip, even if Debian's python3-venv is not installed."""
    python = VENV / "bin" / "python"
    stamp = VENV / "pip-works"
    if stamp.is_file() and stamp.read_text() == _venv_identity():
        return python
    progress("making a virtual environment in .local/venv")
    shutil.rmtree(VENV, ignore_errors=True)
    has_pip = importlib.util.find_spec("ensurepip") is not None
    venv.create(VENV, with_pip=has_pip)
    if not has_pip:
        wheel = _pip_wheel()
        _run([str(python), f"{wheel}/pip", "install", "--quiet", str(wheel)], "pip did not start")
    stamp.write_text(_venv_identity())
    return python


def _venv_identity() -> str:
    """Its folder and its Python: a virtual environment works only with these."""
    return f"{VENV} {sys.version}"


def _pip_wheel() -> Path:
    """The path of the pip wheel in Debian's packages."""
    if shutil.which("apt-get") is None:
        raise StackError("this Python has no ensurepip: install it, or use Docker")
    _unpack(["python3-pip-whl"])
    folders = (PACKAGES / "usr/share/python-wheels", Path("/usr/share/python-wheels"))
    wheels = [wheel for folder in folders for wheel in folder.glob("pip-*.whl")]
    if not wheels:
        raise StackError("the package python3-pip-whl holds no pip: use Docker")
    return wheels[0]


def _run(command: list[str], failure: str) -> str:
    """Run a command quietly and return its output; if it fails, raise StackError with its end."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise StackError(_explain(failure, done.stdout))
    return done.stdout


def _explain(failure: str, output: str) -> str:
    if re.search(NO_NETWORK, output, re.IGNORECASE):
        failure += ". The network, or a proxy's setting, seems to be the cause"
    tail = "\n".join(output.strip().splitlines()[-10:])
    return f"{failure}:\n{tail}"
