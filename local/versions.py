"""The program that runs each service, its version and its origin."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import re
import subprocess
from pathlib import Path

from local.settings import BIN, ROOT, VENV

# Services and the programs (below .local/bin) or Python packages that run them.
PROGRAMS = {
    "nginx-proxy": "nginx",
    "nginx-exporter": "nginx-prometheus-exporter",
    "console-gate": "nginx",
    "prometheus": "prometheus",
    "alertmanager": "alertmanager",
}
PYTHON_PACKAGES = {"flask-app": "gunicorn", "nginx-access-exporter": "nginx_access_exporter"}
VERSION = re.compile(r"version[=: ]+(?:nginx/)?v?(\d[\w.+~-]*)")


@dataclasses.dataclass(frozen=True)
class Program:
    """What runs a service."""

    name: str
    version: str  # "unknown" if the program does not print it
    path: str

    def describe(self) -> str:
        """Name, version and origin, as `./stack status` shows them."""
        path = Path(self.path)
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        return f"{self.name} {self.version} from {shown}"


def running_programs(environment: dict[str, str]) -> dict[str, Program]:
    """The program of each service, as a start now would use it."""
    paths = {service: (BIN / name).resolve() for service, name in PROGRAMS.items()}
    if environment.get("GRAFANA"):
        paths["grafana"] = Path(environment["GRAFANA"])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        versions = list(pool.map(lambda path: version(path, environment), paths.values()))
    found = {
        service: Program(PROGRAMS.get(service, service), text, str(path))
        for (service, path), text in zip(paths.items(), versions, strict=True)
    }
    for service, package in PYTHON_PACKAGES.items():
        found[service] = Program(package, _package_version(package), str(VENV))
    return found


def version(path: Path, environment: dict[str, str] | None = None) -> str:
    """The version that a program prints."""
    option = "-v" if path.name == "nginx" else "--version"
    try:
        done = subprocess.run(
            [path, option],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = VERSION.search(done.stdout)
    return found[1] if found else "unknown"


def _package_version(package: str) -> str:
    for folder in VENV.glob(f"lib/python*/site-packages/{package}-*.dist-info"):
        return folder.name.removesuffix(".dist-info").partition("-")[2]
    return "unknown"
