"""./stack as its users meet it: twice started, badly set, interrupted, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from local.settings import ROOT
from tests.stacks import LocalStack, Stack, launch, wait_until


def run_stack(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "stack", *arguments],
        env=stack.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def processes_of(run: Path) -> list[int]:
    """The processes that know of a run directory."""
    marker = f"STACK_RUN_DIR={run}".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:  # another user's, or already gone
            continue
    return found


@pytest.fixture(scope="module")
def local() -> Iterator[LocalStack]:
    """A local stack of this module's own, with the sample app as it is."""
    with launch("local", {"WSGI_APP": "wsgi:app"}) as stack:
        assert isinstance(stack, LocalStack)
        yield stack


def test_status_shows_every_service_healthy(local: LocalStack) -> None:
    done = run_stack(local, "status")
    assert done.returncode == 0
    assert "NOT HEALTHY" not in done.stdout
    for service in ("nginx-proxy", "flask-app", "prometheus", "alertmanager"):
        assert service in done.stdout


def test_status_names_a_service_that_is_stopped(local: LocalStack) -> None:
    local.stop("nginx-access-exporter")
    try:
        done = run_stack(local, "status")
        assert done.returncode == 1
        line = next(line for line in done.stdout.splitlines() if "access-exporter" in line)
        assert "STOPPED" in line
        assert "NOT HEALTHY" in line
    finally:
        local.start("nginx-access-exporter")


def test_a_second_up_does_no_harm(local: LocalStack) -> None:
    before = processes_of(local.run)
    done = run_stack(local, "up", "--local")
    assert done.returncode == 0
    assert "already running" in done.stdout
    assert processes_of(local.run) == before


def test_a_second_up_that_is_interrupted_leaves_the_stack(local: LocalStack) -> None:
    local.stop("nginx-exporter")  # so that it has something to wait for
    command = [ROOT / "stack", "up", "--local"]
    try:
        with subprocess.Popen(command, env=local.environment, stdout=subprocess.PIPE) as second:
            assert b"already running" in second.stdout.readline()
            second.send_signal(signal.SIGINT)
            assert second.wait(30) == 130
        assert requests.get(local.http, timeout=10).text == "Hello World!"
    finally:
        local.start("nginx-exporter")


def test_a_service_that_dies_is_started_again(local: LocalStack) -> None:
    before = local.main_process("nginx-exporter")
    local.kill("nginx-exporter")
    after = wait_until(
        lambda: (pid := local.main_process("nginx-exporter")) != before and pid, 20, "a new process"
    )
    wait_until(lambda: "nginx_up 1" in local.metrics("nginx-exporter"), 20, "it to serve")
    assert after != before


def test_logs_of_one_service(local: LocalStack) -> None:
    requests.get(f"{local.http}/info", timeout=10)
    wait_until(
        lambda: '"uri":"/info"' in run_stack(local, "logs", "nginx-proxy").stdout, 10, "its log"
    )


def test_logs_of_an_unknown_service_names_the_known_ones(local: LocalStack) -> None:
    done = run_stack(local, "logs", "nginx")
    assert done.returncode == 1
    assert "nginx-proxy" in done.stderr


def test_a_port_in_use_is_named_with_what_to_set_and_nothing_starts() -> None:
    other = LocalStack({})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other.ports["HTTP_PORT"] = taken.getsockname()[1]
        done = run_stack(other, "up", "--local")
        assert done.returncode == 1
        assert f"HTTP_PORT={other.ports['HTTP_PORT']}" in done.stderr
        assert "./stack up" in done.stderr
        assert processes_of(other.run) == []
    other.down()


def test_wrong_settings_are_refused_before_anything_starts() -> None:
    wrong = LocalStack({"GUNICORN_WORKERS": "many", "PROMETHEUS_RETENTION_TIME": "banana"})
    try:
        for arguments in (["up", "--local"], ["up"]):
            done = run_stack(wrong, *arguments)
            assert done.returncode == 1
            assert "GUNICORN_WORKERS" in done.stderr
            assert "PROMETHEUS_RETENTION_TIME=banana" in done.stderr
            assert not any(wrong.run.iterdir())
    finally:
        wrong.down()


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[LocalStack]:
    """A stack whose app imports a package that is not installed."""
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "unchecked.py").write_text("from flask import Flask\napp = Flask(__name__)\n")
    stack = LocalStack({"WSGI_APP": "broken:app"})
    stack.python_path = tmp_path
    yield stack
    stack.down()


def test_an_app_that_does_not_load_is_shown_alone_and_its_log_stays(broken: LocalStack) -> None:
    done = run_stack(broken, "up", "--local")
    assert done.returncode == 1
    assert "flask-app failed to start" in done.stderr
    assert "ModuleNotFoundError: No module named 'no_such_package'" in done.stderr.splitlines()[-2]
    assert "\\n" not in done.stderr
    assert "not healthy after" not in done.stderr  # it did not wait for that
    assert processes_of(broken.run) == []
    logs = run_stack(broken, "logs", "flask-app")
    assert "no_such_package" in logs.stdout
    assert "last run" in logs.stderr


def test_an_app_without_a_health_check_is_told_so(broken: LocalStack) -> None:
    broken.settings["WSGI_APP"] = "unchecked:app"
    done = run_stack(broken, "up", "--local")
    assert done.returncode == 1
    assert "404 instead of 200" in done.stderr
    assert "/flask-health-check" in done.stderr
    assert "not healthy after" not in done.stderr


def test_a_start_shows_only_its_own_lines(broken: LocalStack) -> None:
    log = broken.run / "logs" / "flask-app.log"
    log.parent.mkdir()
    log.write_text("of the run before\n")
    done = run_stack(broken, "up", "--local")
    assert "of the run before" not in done.stderr
    assert "of the run before" not in run_stack(broken, "logs", "flask-app").stdout
    assert (log.parent / "previous" / log.name).read_text() == "of the run before\n"


def test_what_a_killed_supervisord_leaves_is_told_and_ended() -> None:
    with launch("local", {"WSGI_APP": "wsgi:app"}) as stack:
        assert isinstance(stack, LocalStack)
        os.kill(int((stack.run / "supervisord.pid").read_text()), signal.SIGKILL)
        for command in ("up --local", "status"):
            done = run_stack(stack, *command.split())
            assert done.returncode == 1
            assert "still run" in done.stderr
            assert "./stack down" in done.stderr
        assert requests.get(stack.http, timeout=10).text == "Hello World!"
        done = run_stack(stack, "down")
        assert done.returncode == 0
        assert "killed" in done.stdout
        with pytest.raises(requests.ConnectionError):
            requests.get(stack.http, timeout=10)
        assert processes_of(stack.run) == []
        assert run_stack(stack, "up", "--local").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_service_managers_end_an_attached_stack(number: signal.Signals) -> None:
    stack = LocalStack({})
    command = [ROOT / "stack", "up", "--local", "--attach"]
    with subprocess.Popen(
        command,
        env=stack.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as shown:
        try:
            wait_until(
                lambda: requests.get(stack.http, timeout=5).text == "Hello World!", 60, "it to run"
            )
            # Ctrl-C reaches all of a terminal's processes.
            (os.killpg if number == signal.SIGINT else os.kill)(shown.pid, number)
            shown.wait(60)
            assert processes_of(stack.run) == []
        finally:
            shown.kill()
            stack.down()


def test_down_leaves_no_process() -> None:
    with launch("local") as stack:
        assert isinstance(stack, LocalStack)
        assert processes_of(stack.run)
        done = run_stack(stack, "down")
        assert done.returncode == 0
        assert processes_of(stack.run) == []
        assert run_stack(stack, "status").returncode == 1
