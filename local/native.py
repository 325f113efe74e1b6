"""Runs the stack as processes of this machine: what `./stack` prints and does with them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from local import checks, packages
from local.console import progress, show, warn
from local.exclusive import exclusive
from local.processes import Processes
from local.settings import LOCAL, StackError
from local.versions import Program

HEALTHY_WITHIN = 60.0  # seconds, after the processes were started


def up(values: dict[str, str], local: Processes, *, attach: bool) -> None:
    """Fetch what is missing, start the processes and wait for their health checks.

    Args:
        values: settings.
        local: the stack.
        attach: follow the logs until Ctrl-C, and end the stack then.

    Raises:
        StackError: something is missing, or a service failed; then the whole stack was ended,
            unless it ran before.
    """
    ours = attach or not local.running  # otherwise somebody else started it and still uses it
    try:
        if local.running:
            progress(
                "already running; ./stack reload flask-app loads the app's changed code; "
                "to apply other changes: ./stack down, then ./stack up"
            )
        else:
            _start(values, local)
        local.wait_until_healthy(HEALTHY_WITHIN, progress)
        status(local)
        if attach:
            _follow(local, local.logged_services())
            local.stop(progress)
    except (KeyboardInterrupt, StackError):
        if ours and local.running:
            progress("stopping")
            local.stop(progress)
        raise


def status(local: Processes) -> int:
    """Print a line for each service, and what is wrong; 0 if everything is healthy."""
    statuses = local.statuses()
    programs = local.programs()
    for each in statuses:
        health = "healthy" if each.healthy else "NOT HEALTHY"
        program = programs[each.name].describe() if each.name in programs else ""
        print(f"{each.name:<22} {each.state:<10} {health:<12} {each.problem or each.address}")
        print(f"{'':<22} {program}")
    for message in _changed_programs(programs):
        warn(message)
    problems = [*filter(None, (checks.disk_problem(local.run), _cache_problem(local)))]
    for problem in problems:
        warn(problem)
    healthy = statuses and all(each.healthy for each in statuses) and not problems
    return 0 if healthy else 1


def logs(local: Processes, services: list[str], *, follow: bool) -> int:
    """Print the end of the services' logs, or follow them; after a failed start, that start's."""
    known = local.logged_services()
    if not known:
        raise StackError("there are no logs: nothing ran yet")
    unknown = sorted(set(services) - set(known))
    if unknown:
        raise StackError(f"no service {', '.join(unknown)}: choose from {', '.join(known)}")
    if not local.running:
        warn("nothing runs; these are the logs of the last run")
    if follow:
        return _follow(local, services or known)
    return show(["tail", "-n", "100", *map(local.log, services or known)], local.run)


def down(local: Processes, *, now: bool) -> int:
    """End every process."""
    local.stop(progress, now=now)
    progress("stopped")
    return 0


def run_command(values: dict[str, str], local: Processes, command: list[str]) -> int:
    """Run a command of the app's, such as a migration; returns its exit status."""
    fetch(tests=False, app=values)
    environment = local.app_environment(values)
    program = shutil.which(command[0], path=environment["PATH"])
    if program is None:
        raise StackError(f"{command[0]}: no such command, and none of the app's packages has it")
    return subprocess.call([program, *command[1:]], cwd=environment["APP_DIR"], env=environment)


def fetch(*, tests: bool, app: dict[str, str] | None = None) -> None:
    """Fetch what the services need; only one process at a time fetches.

    Args:
        tests: also what the tests need.
        app: settings; also what their application needs.
    """
    checks.check_folder(LOCAL)
    with exclusive(LOCAL / "fetch.lock", _wait_for_other_fetch):
        packages.ensure_programs(progress)
        packages.ensure_python(progress, tests=tests)
        if app is not None:
            packages.ensure_app(app, progress)


def _wait_for_other_fetch(pid: str) -> None:
    progress(f"another ./stack (process {pid}) is fetching programs: waiting for it")


def _start(values: dict[str, str], local: Processes) -> None:
    local.check_paths()
    local.refuse_orphans()
    checks.check_ports(values, docker=False)
    fetch(tests=False, app=values)
    local.start(values)
    progress("started; waiting for the health checks")


def _cache_problem(local: Processes) -> str:
    command = ["sh", "-c", checks.CACHE_SCRIPT]
    environment = local.saved_environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return checks.cache_problem(done.stdout)


def _follow(local: Processes, services: list[str]) -> int:
    return show(["tail", "-n", "10", "-F", *map(local.log, services)], local.run)


def _changed_programs(programs: dict[str, Program]) -> list[str]:
    """Messages about programs that the next start would use instead of those that run."""
    paths = packages.programs()
    changed = []
    for service, running in programs.items():
        path = paths.get(running.name)
        if path and path.resolve() != Path(running.path):
            changed.append(
                f"{service} runs {running.path}; the next start will use {path}, "
                "which is on PATH now"
            )
    return changed
