"""Starts, checks and ends the local processes, which supervisor runs (local/supervisord.conf)."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local import orphans
from local.excerpt import excerpt, not_loaded
from local.settings import (
    BIN,
    ROOT,
    SERVICES,
    VENV,
    Service,
    StackError,
    app_packages,
    environment,
)
from local.versions import Program, running_programs

CONFIG = ROOT / "local" / "supervisord.conf"
SUPERVISORD = VENV / "bin" / "supervisord"
# Linux's limit for the path of a Unix socket, less the suffix that supervisor adds at first.
LONGEST_SOCKET_PATH = 107 - len(".2147483647")
ENDED = ("BACKOFF", "EXITED")
ENDS_EARLY = ("nginx-exporter",)  # it ends if nginx does not answer yet; supervisor restarts it
# The app refuses its health check. It may still be loading, so it has some time to stop refusing.
REFUSED = re.compile(r"HTTP Error (4\d\d)")
REFUSED_WITHIN = 3.0  # seconds
NOT_RELOADED = "not reloaded, because this is wrong"
SILENT_STOP = 1.0  # seconds that a service may take to stop before the user is told


@dataclasses.dataclass(frozen=True)
class Status:
    """A service as `./stack status` shows it."""

    name: str
    state: str  # supervisor's word, such as RUNNING or BACKOFF
    pid: int  # 0 if it does not run
    address: str
    problem: str  # why the health check failed; empty if it passed

    @property
    def healthy(self) -> bool:
        """Whether it runs and its health check passes."""
        return self.state == "RUNNING" and not self.problem


class Processes:
    """The stack that has its state in this run directory."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._socket = run / "supervisor.sock"
        self._saved = run / "environment.json"
        self._programs = run / "programs.json"

    @property
    def running(self) -> bool:
        """Whether supervisord answers."""
        if not self._saved.is_file():
            return False
        try:
            return bool(self.supervisor("getPID"))
        except StackError:
            return False

    def check_paths(self) -> None:
        """Raise StackError if supervisor can't work with the paths of this stack's folders."""
        for folder in (ROOT, self.run):
            if odd := re.search(r"[\s'\"%$;\\]", str(folder)):
                raise StackError(
                    f"there is a {odd[0]!r} in {str(folder)!r}: "
                    "move this folder, or set STACK_RUN_DIR, to a path without that character"
                )
        if len(os.fsencode(self._socket)) > LONGEST_SOCKET_PATH:
            raise StackError(
                f"{self._socket} is too long a path for a Unix socket: "
                "set STACK_RUN_DIR to a shorter one, or move this folder"
            )

    def start(self, values: dict[str, str]) -> None:
        """Start supervisord and with it every service, with the user's settings.

        Raises:
            StackError: a configuration file is wrong, or supervisord does not start.
        """
        # Grafana writes error lines where this folder is missing.
        (self.run / "grafana" / "plugins").mkdir(parents=True, exist_ok=True)
        (self.run / "app-data").mkdir(exist_ok=True)
        env = environment(values, self.run)
        programs = running_programs(env)
        env["PROMETHEUS_OPTIONS"] = _prometheus_options(programs["prometheus"].version)
        self._put_logs_aside()
        _run([VENV / "bin" / "python", "-m", "local.render"], env, "the configuration is not valid")
        self._saved.touch(mode=0o600)  # it can hold secrets from the user's settings
        self._saved.write_text(json.dumps(env))
        saved = {service: dataclasses.astuple(program) for service, program in programs.items()}
        self._programs.write_text(json.dumps(saved))
        _run([SUPERVISORD, "-c", CONFIG], env, "supervisord did not start")

    def stop(self, progress: Callable[[str], None], *, now: bool = False) -> None:
        """End every process, last started first, and wait until all are gone.

        Args:
            progress: is called when requests under way make this take long.
            now: kill them; requests under way are cut off. Ctrl-C while waiting does the same.
        """
        pid = self.supervisor("getPID")
        try:
            if not now:
                self._drain(pid, progress)
            orphans.end(lambda: orphans.session(pid), now=now)
        except KeyboardInterrupt:
            progress("ending everything at once")
            orphans.end(lambda: orphans.session(pid), now=True)
        self._saved.unlink(missing_ok=True)

    def _drain(self, supervisord: int, progress: Callable[[str], None]) -> None:
        pids = {name: pid for name, (_, pid) in self._states().items() if pid}
        limit = self.saved_environment()["FLASK_APP_TIMEOUT"]
        self.supervisor("shutdown")
        since: dict[str, float] = {}
        while orphans.alive(supervisord):
            remaining = {name for name, pid in pids.items() if orphans.alive(pid)}
            # supervisord stops these last, one after the other.
            if remaining and remaining <= {"nginx-proxy", "flask-app"}:
                service = max(remaining)
                began = since.setdefault(service, time.monotonic())
                if began and time.monotonic() - began > SILENT_STOP:
                    since[service] = 0  # reported
                    progress(
                        f"{service} is finishing its requests, which can take {limit} s; "
                        "Ctrl-C, or ./stack down --now, cuts them off"
                    )
            time.sleep(0.05)

    def refuse_orphans(self) -> None:
        """Raise StackError if processes still run although their supervisord was killed."""
        if leader := orphans.session_of(self.run):
            pids = ", ".join(map(str, orphans.session(leader)))
            raise StackError(
                "orphaned processes of this stack still run; the supervisord that started them "
                f"was killed ({pids}): end them by ./stack down"
            )

    def end_orphans(self, *, now: bool = False) -> bool:
        """End the processes of a supervisord that was killed; return whether any were found."""
        leader = orphans.session_of(self.run)
        if leader:
            orphans.end(lambda: orphans.session(leader), now=now)
        self._saved.unlink(missing_ok=True)
        return bool(leader)

    def supervisor(self, method: str, *arguments: str) -> Any:  # noqa: ANN401  of many types
        """Call a method of supervisor's XML-RPC API (supervisord.org/api.html).

        Raises:
            StackError: supervisord does not answer, or refuses.
        """
        transport = _SocketTransport(self._socket)
        try:
            with xmlrpc.client.ServerProxy("http://supervisor", transport=transport) as server:
                return getattr(server.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise StackError(f"supervisord, {method}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise StackError(f"supervisord does not answer at {self._socket}: {error}") from error

    def reload(self, service: str, progress: Callable[[str], None]) -> None:
        """Have new workers take the place of the old ones, which finish their requests.

        Raises:
            StackError: the service cannot do it, or its configuration or code is wrong; then the
                old workers go on.
        """
        env = self.saved_environment()
        _run(self._check_command(service, env), self.app_environment(env), NOT_RELOADED)
        main = self.pid(service)
        old = [pid for pid in orphans.group(main) if pid != main]
        self.supervisor("signalProcess", service, "HUP")
        deadline = time.monotonic() + float(env["FLASK_APP_TIMEOUT"])
        while any(map(orphans.alive, old)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.pid(service) != main:
            raise StackError(f"{service} ended instead. Its log says:\n{self._excerpt(service)}")
        progress(f"{service} is reloaded")

    def _check_command(self, service: str, env: dict[str, str]) -> list[str | Path]:
        if service == "nginx-proxy":
            folder = Path(env["NGINX_RUN_DIR"])
            options = ["-t", "-q", "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf"]
            return [BIN / "nginx", *options, "-g", env["NGINX_USER_DIRECTIVE"]]
        if env.get("GUNICORN_PRELOAD_APP") == "true":
            raise StackError(
                "with GUNICORN_PRELOAD_APP=true, gunicorn can't load new code: "
                "./stack down, then ./stack up"
            )
        settings = ROOT / "flask" / "gunicorn.conf.py"
        command = [VENV / "bin" / "python", "-m", "gunicorn", "--check-config"]
        return [*command, "--config", settings, "--chdir", env["APP_DIR"]]

    def pid(self, service: str) -> int:
        """The process id of a service's main process; 0 if it does not run."""
        return self.supervisor("getProcessInfo", service)["pid"]

    def statuses(self) -> list[Status]:
        """The state of every service and the result of its health check."""
        env = self.saved_environment()
        states = self._states()
        services = [service for service in SERVICES if service.name in states]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            problems = pool.map(lambda service: check(url(service, env)), services)
        return [
            Status(
                service.name,
                *states[service.name],
                f"http://127.0.0.1:{env[service.port_variable]}",
                problem,
            )
            for service, problem in zip(services, problems, strict=True)
        ]

    def wait_until_healthy(self, seconds: float, progress: Callable[[str], None]) -> None:
        """Wait for every health check to pass, and report each that does.

        Raises:
            StackError: a service ended, or was not healthy in time; the message has its log.
        """
        start = _Start(seconds)
        healthy: set[str] = set()
        while True:
            statuses = self.statuses()
            for status in statuses:
                if status.healthy and status.name not in healthy:
                    progress(f"{status.name} is healthy")
                    healthy.add(status.name)
            if statuses and all(status.healthy for status in statuses):
                return
            for status in statuses:
                if failure := start.failure(status, self._log_text(status.name)):
                    raise StackError(f"{failure}\n{self._excerpt(status.name)}")
            if start.is_late() and not statuses:
                raise StackError(f"supervisor runs no service:\n{self._excerpt('supervisord')}")
            time.sleep(0.1)

    def programs(self) -> dict[str, Program]:
        """The program of each service when the stack was last started."""
        return {service: Program(*program) for service, program in _read(self._programs).items()}

    def saved_environment(self) -> dict[str, str]:
        """The environment the running stack was started with.

        If older code started the stack, newer settings are missing and get their defaults.
        """
        return environment({}, self.run) | {"GRAFANA": ""} | _read(self._saved)

    def app_environment(self, values: dict[str, str]) -> dict[str, str]:
        """The environment for a command of the application's, whether or not the stack runs."""
        variables = self.saved_environment() if self.running else environment(values, self.run)
        Path(variables["APP_DATA_DIR"]).mkdir(parents=True, exist_ok=True)
        # The workers' counts are no business of the command's.
        del variables["PROMETHEUS_MULTIPROC_DIR"]
        programs = app_packages(values) / "bin"
        return variables | {
            "PYTHONPATH": variables["APP_PYTHONPATH"],
            "PATH": f"{programs}{os.pathsep}{variables['PATH']}",
        }

    def address(self, name: str) -> str:
        """The URL of a service of the running stack."""
        service = next(service for service in SERVICES if service.name == name)
        return f"http://127.0.0.1:{self.saved_environment()[service.port_variable]}"

    def log(self, service: str) -> Path:
        """The file that holds what a service printed."""
        return self.run / "logs" / f"{service}.log"

    def logged_services(self) -> list[str]:
        """The services that printed something in the last run."""
        return [service.name for service in SERVICES if self.log(service.name).is_file()]

    def _put_logs_aside(self) -> None:
        """Begin new logs; those of the previous run stay in `previous/` until the next start."""
        logs = self.run / "logs"
        previous = logs / "previous"
        shutil.rmtree(previous, ignore_errors=True)
        previous.mkdir(parents=True)
        for path in logs.glob("*.log*"):
            path.rename(previous / path.name)

    def _states(self) -> dict[str, tuple[str, int]]:
        """The state and the process id of each service."""
        try:
            found = self.supervisor("getAllProcessInfo")
        except StackError:
            return {}
        return {
            each["name"]: (each["statename"], each["pid"])
            for each in found
            if each["statename"] != "STOPPED" or each["name"] != "grafana"
        }

    def _excerpt(self, service: str) -> str:
        # A service that never started has no log; then supervisor's own log has the reason.
        return excerpt(self._log_text(service).strip() or self._log_text("supervisord"))

    def _log_text(self, service: str) -> str:
        path = self.log(service)
        return path.read_text(errors="replace") if path.is_file() else ""


class _SocketTransport(xmlrpc.client.Transport):
    """Connects to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: str) -> http.client.HTTPConnection:
        """Return a connection, which closes with the transport."""
        connection = http.client.HTTPConnection(host)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self._path))
        self._connection = host, connection
        return connection


class _Start:
    """Finds services that will not become healthy, while they start."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        self._pids: dict[str, int] = {}
        self._refusing_since: dict[str, float] = {}

    def is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def failure(self, status: Status, log: str) -> str:
        """Why a service has failed; empty as long as it may still become healthy."""
        if status.pid:
            first = self._pids.setdefault(status.name, status.pid)
        ended = status.state in ENDED or (status.pid and status.pid != first)
        ended = ended and status.name not in ENDS_EARLY
        if ended or status.state == "FATAL" or (not status.healthy and not_loaded(log)):
            return f"{status.name} failed to start. Its log says:"
        if status.healthy:
            return ""
        refused = REFUSED.search(status.problem) if status.name == "flask-app" else None
        if refused:
            since = self._refusing_since.setdefault(status.name, time.monotonic())
            if time.monotonic() - since > REFUSED_WITHIN:
                return (
                    f"the app answers its health check with {refused[1]} instead of 200 "
                    f"({status.problem}). It needs a route /flask-health-check that answers 200: "
                    "see README.md, 'Put your own app in'. Its log ends with:"
                )
        if self.is_late():
            why = ", ".join(filter(None, (status.state, status.problem)))
            return f"{status.name} is not healthy after {self._seconds:.0f} s ({why}). Its log:"
        return ""


def _prometheus_options(version: str) -> str:
    """Options for this version: Prometheus 2 expands external labels only with a flag."""
    return "--enable-feature=expand-external-labels" if version.startswith("2.") else ""


def url(service: Service, env: dict[str, str]) -> str:
    """The URL of a service's health check."""
    return f"http://127.0.0.1:{env[service.port_variable]}{service.health_path}"


def check(address: str) -> str:
    """Call a health check; return the problem, empty if it answers 200 within 2 seconds."""
    # The service is on this machine, so no proxy may be used.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=2) as response:
            ok = response.status == http.HTTPStatus.OK
            return "" if ok else f"{address}: status {response.status}"
    except (OSError, http.client.HTTPException) as error:
        return f"{address}: {error}"


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _run(command: list[str | Path], env: dict[str, str], failure: str) -> None:
    """Run a command; if it fails, raise StackError with its output."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        umask=0o027,  # of supervisord's own log; local/supervisord.conf sets it for the services
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"{failure}:\n{done.stdout.strip()}")
