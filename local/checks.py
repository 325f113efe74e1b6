"""Checks before anything starts: every mistake is reported at once, with what is allowed."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import runpy
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from local import receivers
from local.settings import (
    DEFAULT_PORTS,
    ROOT,
    StackError,
    app_directory,
    grafana_program,
    port_problems,
    ports,
    read_env_file,
)

REQUIRED = ("PROMETHEUS_RETENTION_TIME", "PROMETHEUS_RETENTION_SIZE")
IMAGES = (
    "NGINX_IMAGE",
    "PYTHON_IMAGE",
    "NGINX_EXPORTER_IMAGE",
    "PROMETHEUS_IMAGE",
    "ALERTMANAGER_IMAGE",
    "GRAFANA_IMAGE",
)
SIZE = "a size such as 512k, 20m or 1g"
DURATION = r"(?=.)(\d+y)?(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?"
PATTERNS = {
    "PROMETHEUS_RETENTION_TIME": (DURATION, "a time such as 15d or 12h"),
    "PROMETHEUS_RETENTION_SIZE": (r"0|\d+([KMGTPE]B|B)", "a size such as 2GB or 512MB"),
    "NGINX_WORKER_PROCESSES": (r"auto|[1-9]\d{0,2}", "auto, or a number from 1 to 999"),
    "NGINX_LOG_ADDRESSES": (r"true|false", "true or false"),
    "NGINX_CLIENT_REQUESTS_PER_SECOND": (r"[1-9]\d{0,5}", "a number from 1 to 999999"),
    "NGINX_CLIENT_CONNECTIONS": (r"[1-9]\d{0,4}", "a number from 1 to 65535"),
    "NGINX_CLIENT_MAX_BODY_SIZE": (r"\d+[kKmMgG]?", f"{SIZE}, or 0 for no limit"),
    "NGINX_CACHE_MAX_SIZE": (r"[1-9]\d*[kKmMgG]?", SIZE),
    "NGINX_CACHE_TTL": (r"\d+(ms|[smhdwMy])?", "a time such as 30s, 5m or 1h; 0 caches nothing"),
    "CONSOLE_HOSTS": (r"[\w.*-]+( +[\w.*-]+)*", "names with spaces between them"),
    # It becomes a build argument and the value of a label.
    "APP_VERSION": (r"[\w.+:/@-]{1,128}", "at most 128 letters, digits and any of . _ + : / @ -"),
    "ALERT_SMTP_REQUIRE_TLS": (r"true|false", "true or false"),
}
FOLDERS = ("PROMETHEUS_RULES_DIR", "ALERT_SECRETS_DIR", "APP_DIR", "APP_STATIC_DIR")
LEAST_FREE = 32_000_000  # bytes; Prometheus and nginx's cache need more than this soon
# Runs beside nginx. It prints the file of nginx/cache-watcher.sh if that says "off", or is old.
CACHE_SCRIPT = 'find "$NGINX_METRICS_DIR" -name "*.cache-off" -o -name "*.cache-on" -mmin +1'
GUNICORN_SETTINGS = ROOT / "flask" / "gunicorn_settings.py"


def check_settings(values: dict[str, str], *, docker: bool) -> None:
    """Check every setting that can be checked without starting a service.

    Raises:
        StackError: settings are wrong; the message has a line for each.
    """
    problems = [
        *_missing(values, (*REQUIRED, *IMAGES) if docker else REQUIRED),
        *(port_problems(values, replicas=docker)),
        *_unmatched(values),
        *_absent_folders(values),
        *_app(values, docker=docker),
        *_trusted_proxies(values),
        *_email(values),
        *_gunicorn(values),
    ]
    if problems:
        raise StackError("\n".join(("these settings are wrong:", *indented(problems))))


def check_ports(values: dict[str, str], *, docker: bool) -> None:
    """Check that no other program listens on a port that will be used.

    Raises:
        StackError: ports are taken; the message has a line for each.
    """
    taken = list(_taken_ports(values, docker=docker))
    if taken:
        example = taken[0].partition("=")[0]
        lines = ("these ports can't be used:", *indented(taken))
        advice = f"Set another in .env or the shell, e.g. {example}=18080 ./stack up"
        raise StackError("\n".join((*lines, advice)))


def check_folder(folder: Path) -> None:
    """Check that a folder can be written to and has room.

    Raises:
        StackError: the folder can't be written to, or its disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write to {folder}")
    except OSError as error:
        raise StackError(
            f"can't write to {folder} ({error.strerror or error}): "
            "./stack keeps what it fetches and its data there; make it writable, "
            "or clone the repository to a folder of your own"
        ) from error
    if problem := disk_problem(folder):
        raise StackError(problem)


def disk_problem(folder: Path) -> str:
    """Say that a folder's disk is full; empty if it is not."""
    free = shutil.disk_usage(folder).free
    if free >= LEAST_FREE:
        return ""
    return (
        f"the disk is full: {free / 1e6:.0f} MB are free for {folder}, "
        f"at least {LEAST_FREE / 1e6:.0f} MB are needed. Delete files, or set STACK_RUN_DIR "
        "to a folder on another disk"
    )


def cache_problem(printed: str) -> str:
    """Say what is wrong with nginx's cache; empty if it is in use and watched.

    Args:
        printed: what CACHE_SCRIPT printed.
    """
    if ".cache-off" in printed:
        problem = "nginx does not use its cache, because it cannot write there"
    elif printed.strip():
        problem = "cache-watcher.sh does not run: requests will fail if the cache cannot be written"
    else:
        return ""
    return f"{problem}. See docs/runbooks.html#CacheNotWritable"


def indented(lines: Iterable[str]) -> list[str]:
    """Lines of a list below a heading."""
    return [f"  {line}" for line in lines]


def _missing(values: dict[str, str], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if not values.get(name):
            yield f"{name} is not set: restore its line in .env (git checkout .env)"


def _unmatched(values: dict[str, str]) -> Iterator[str]:
    for name, (pattern, allowed) in PATTERNS.items():
        value = values.get(name)
        if value and not re.fullmatch(pattern, value):
            yield f"{name}={value}: must be {allowed}"


def _absent_folders(values: dict[str, str]) -> Iterator[str]:
    for name in FOLDERS:
        value = values.get(name)
        if value and not (ROOT / value).is_dir():
            yield f"{name}={value}: there is no such folder"


def _app(values: dict[str, str], *, docker: bool) -> Iterator[str]:
    """Problems with the application's folder and the file of its variables."""
    folder, name = app_directory(values), values.get("APP_DIR") or "flask"
    if folder.is_dir():
        if docker and ROOT not in folder.parents:
            yield (
                f"APP_DIR={name}: with Docker it must be a folder inside {ROOT}, which is what "
                "the image is built from: clone or copy the app into this folder"
            )
        if docker and not (folder / "nginx").is_dir():
            yield f"APP_DIR={name}: it has no folder nginx/: make one, which may be empty"
        if not values.get("WSGI_APP") and not (folder / "wsgi.py").is_file():
            yield (
                f"APP_DIR={name}: it has no wsgi.py, which makes the app: see docs/own-app.md; "
                "or name another module, such as WSGI_APP=package.module:app"
            )
    if values.get("APP_ENV_FILE"):
        try:
            read_env_file(values["APP_ENV_FILE"])
        except StackError as error:
            yield f"APP_ENV_FILE: {error}"


def _trusted_proxies(values: dict[str, str]) -> Iterator[str]:
    for address in values.get("NGINX_TRUSTED_PROXIES", "").split():
        try:
            ipaddress.ip_network(address)
        except ValueError as error:
            yield (
                f"NGINX_TRUSTED_PROXIES: {error}; must be addresses and networks with spaces "
                "between them, such as 192.0.2.10 10.0.0.0/8"
            )


def _email(values: dict[str, str]) -> Iterator[str]:
    if receivers.setting(values, "ALERT_EMAIL_TO"):
        for name in ("ALERT_EMAIL_FROM", "ALERT_SMTP_HOST"):
            if not receivers.setting(values, name):
                yield f"{name} is not set, but ALERT_EMAIL_TO is: set it too"


def _gunicorn(values: dict[str, str]) -> list[str]:
    if not GUNICORN_SETTINGS.is_file():  # another app may have no such file
        return []
    return runpy.run_path(str(GUNICORN_SETTINGS))["read"](values)[1]


def _taken_ports(values: dict[str, str], *, docker: bool) -> Iterator[str]:
    chosen = ports(values, replicas=docker)
    if docker:
        published = ("HTTP_PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT", "GRAFANA_PORT")
        if not values.get("HTTP_PORT"):
            chosen["HTTP_PORT"] = 80
    else:
        published = [
            name for name in DEFAULT_PORTS if name != "GRAFANA_PORT" or grafana_program(values)
        ]
    for name in published:
        with contextlib.closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("" if docker and name == "HTTP_PORT" else "127.0.0.1", chosen[name]))
            except OSError as error:
                yield f"{name}={chosen[name]}: {error.strerror}"
