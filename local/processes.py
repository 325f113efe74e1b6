"""Starts, asks and ends the local processes, which supervisor keeps (local/supervisord.conf)."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import http.client
import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from local import orphans
from local.settings import (
    ROOT,
    SERVICES,
    VENV,
    Service,
    StackError,
    environment,
    grafana_program,
    ports,
)

CONFIG = ROOT / "local" / "supervisord.conf"
SUPERVISORD, SUPERVISORCTL = (VENV / "bin" / name for name in ("supervisord", "supervisorctl"))
# The longest path Linux takes for a Unix socket, less the suffix supervisor adds in making one.
LONGEST_SOCKET_PATH = 107 - len(".2147483647")


@dataclasses.dataclass(frozen=True)
class Status:
    """A service as `./stack status` shows it."""

    name: str
    state: str
    address: str
    problem: str  # what the health check met; empty where all is well

    @property
    def healthy(self) -> bool:
        """Whether it runs and its health check passes."""
        return self.state == "RUNNING" and not self.problem


class Processes:
    """The stack whose state is in one run directory."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._saved = run / "environment.json"

    @property
    def running(self) -> bool:
        """Whether supervisord answers."""
        return (
            self._saved.is_file()
            and SUPERVISORCTL.is_file()
            and self._control("pid").returncode == 0
        )

    def check_paths(self) -> None:
        """Raise StackError where supervisor can't work with the folders this is in."""
        for folder in (ROOT, self.run):
            if odd := re.search(r"[\s'\"%$;\\]", str(folder)):
                raise StackError(
                    f"there is a {odd[0]!r} in {str(folder)!r}: "
                    "move this folder, or set STACK_RUN_DIR, to a path without"
                )
        socket_path = str(self.run / "supervisor.sock")
        if len(os.fsencode(socket_path)) > LONGEST_SOCKET_PATH:
            raise StackError(
                f"{socket_path} is too long a path for a Unix socket: "
                "set STACK_RUN_DIR to a shorter one, or move this folder"
            )

    def start(self, values: dict[str, str]) -> None:
        """Start supervisord and with it every service, with the user's settings.

        Raises:
            StackError: a port is in use, or a setting or configuration file is wrong.
        """
        self.refuse_orphans()
        check_ports(values)
        (self.run / "logs").mkdir(parents=True, exist_ok=True)
        env = environment(values, self.run)
        _run([VENV / "bin" / "python", "-m", "local.render"], env, "the configuration is not valid")
        self._saved.touch(mode=0o600)  # it can hold secrets from the user's settings
        self._saved.write_text(json.dumps(env))
        _run([SUPERVISORD, "-c", CONFIG], env, "supervisord did not start")

    def stop(self) -> None:
        """End every process, last started first, and wait until all are gone."""
        pid = int(self._control("pid").stdout)
        self._control("shutdown")
        while orphans.alive(pid):
            time.sleep(0.05)
        orphans.end(orphans.session(pid))
        self._saved.unlink(missing_ok=True)

    def refuse_orphans(self) -> None:
        """Raise StackError where processes of a supervisord that was killed run on."""
        if pids := orphans.find(self.run):
            raise StackError(
                "processes of this stack still run, without the supervisord that started them "
                f"({', '.join(map(str, pids))}): end them by ./stack down"
            )

    def end_orphans(self) -> bool:
        """End the processes of a supervisord that was killed; whether there were any."""
        pids = orphans.find(self.run)
        orphans.end(pids)
        self._saved.unlink(missing_ok=True)
        return bool(pids)

    def control(self, action: str, service: str) -> None:
        """Have supervisor start, stop or restart one service."""
        done = self._control(action, service)
        if done.returncode != 0:
            raise StackError(f"supervisorctl {action} {service}: {done.stdout.strip()}")

    def pid(self, service: str) -> int:
        """The process id of a service's main process; 0 where it does not run."""
        return int(self._control("pid", service).stdout)

    def statuses(self) -> list[Status]:
        """Every service with supervisor's state and the answer of its health check."""
        env = self.saved_environment()
        states = dict(self._states())
        services = [service for service in SERVICES if service.name in states]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            problems = pool.map(lambda service: check(url(service, env)), services)
        return [
            Status(
                service.name,
                states[service.name],
                f"http://127.0.0.1:{env[service.port_variable]}",
                problem,
            )
            for service, problem in zip(services, problems, strict=True)
        ]

    def wait_until_healthy(self, seconds: float, progress: Callable[[str], None]) -> None:
        """Wait for every health check to pass, telling of each that does.

        Raises:
            StackError: a service gave up or was not healthy in time; with its last log lines.
        """
        deadline = time.monotonic() + seconds
        reported: set[str] = set()
        while True:
            statuses = self.statuses()
            for status in statuses:
                if status.healthy and status.name not in reported:
                    progress(f"{status.name} is healthy")
                    reported.add(status.name)
            if all(status.healthy for status in statuses):
                return
            failed = [status for status in statuses if status.state == "FATAL"]
            late = [status for status in statuses if not status.healthy]
            if failed or time.monotonic() > deadline:
                status = (failed or late)[0]
                why = ", ".join(filter(None, (status.state, status.problem)))
                raise StackError(
                    f"{status.name} is not healthy ({why}); its log ends with:\n"
                    + self._log_tail(status.name)
                )
            time.sleep(0.1)

    def saved_environment(self) -> dict[str, str]:
        """The environment the running stack was started with."""
        return json.loads(self._saved.read_text())

    def address(self, name: str) -> str:
        """The URL of a service of the running stack."""
        service = next(service for service in SERVICES if service.name == name)
        return f"http://127.0.0.1:{self.saved_environment()[service.port_variable]}"

    def log(self, service: str) -> Path:
        """The file that holds what a service printed."""
        return self.run / "logs" / f"{service}.log"

    def _states(self) -> Iterator[tuple[str, str]]:
        for line in self._control("status").stdout.splitlines():
            name, state, *_ = line.split()
            if state != "STOPPED" or name != "grafana":
                yield name, state

    def _control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [SUPERVISORCTL, "-c", CONFIG, *arguments]
        return _output(command, self.saved_environment())

    def _log_tail(self, service: str) -> str:
        # What was never started has left nothing: then supervisor knows why.
        for path in (self.log(service), self.log("supervisord")):
            lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
            if lines:
                break
        return "\n".join(f"  {line}" for line in lines[-10:])


def url(service: Service, env: dict[str, str]) -> str:
    """Where a service's health check answers."""
    return f"http://127.0.0.1:{env[service.port_variable]}{service.health_path}"


def check(address: str) -> str:
    """Ask a health check; returns what came instead of 200 within 2 seconds, empty for 200."""
    # On this machine: not by way of a proxy that the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=2) as response:
            ok = response.status == http.HTTPStatus.OK
            return "" if ok else f"{address}: status {response.status}"
    except (OSError, http.client.HTTPException) as error:
        return f"{address}: {error}"


def _run(command: list[str | Path], env: dict[str, str], failure: str) -> None:
    """Run a command; where it fails, raise StackError with what it said."""
    done = _output(command, env)
    if done.returncode != 0:
        raise StackError(f"{failure}:\n{done.stdout.strip()}")


def _output(command: list[str | Path], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def check_ports(values: dict[str, str]) -> None:
    """Raise StackError naming every port that is in use, and what to set instead."""
    taken = []
    for name, port in ports(values).items():
        if name == "GRAFANA_PORT" and not grafana_program(values):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                taken.append(f"  {name}={port}: {error.strerror}")
    if taken:
        example = taken[0].split("=")[0].strip()
        raise StackError(
            "these ports can't be used:\n"
            + "\n".join(taken)
            + f"\nSet another in .env or the shell, e.g. {example}=18080 ./stack up"
        )
