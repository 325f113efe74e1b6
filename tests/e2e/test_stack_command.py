"""The ./stack command: second starts, wrong settings, interruptions, failures, ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from local.orphans import alive
from local.settings import ROOT, SERVICES, settings
from tests.alerting import Receivers
from tests.stacks import (
    ComposeStack,
    LocalStack,
    Stack,
    engine_missing,
    free_port,
    launch,
    wait_for_in_flight,
    wait_until,
)


def processes_of(run: Path) -> list[int]:
    """The processes that have this run directory in their environment."""
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
    """A local stack of this module's own."""
    with launch("local") as stack:
        assert isinstance(stack, LocalStack)
        yield stack


def test_status_shows_every_service_healthy(local: LocalStack) -> None:
    done = local.command("status")
    assert done.returncode == 0
    assert "NOT HEALTHY" not in done.stdout
    for service in ("nginx-proxy", "flask-app", "prometheus", "alertmanager"):
        assert service in done.stdout
    for program in ("nginx", "prometheus", "alertmanager", "gunicorn"):
        assert re.search(rf"^ +{program} \d[\w.+~-]* from /?[\w.]", done.stdout, re.MULTILINE)
    assert "alerts go to: nobody" in done.stdout


def test_status_names_a_service_that_is_stopped(local: LocalStack) -> None:
    local.stop("nginx-access-exporter")
    try:
        done = local.command("status")
        assert done.returncode == 1
        line = next(line for line in done.stdout.splitlines() if "access-exporter" in line)
        assert "STOPPED" in line
        assert "NOT HEALTHY" in line
    finally:
        local.start("nginx-access-exporter")


def test_a_second_up_changes_nothing(local: LocalStack) -> None:
    before = {each.name: local.main_process(each.name) for each in SERVICES}
    done = local.command("up", "--local")
    assert done.returncode == 0
    assert "already running" in done.stdout
    assert {each.name: local.main_process(each.name) for each in SERVICES} == before


def test_an_interrupted_second_up_does_not_stop_the_stack(local: LocalStack) -> None:
    local.stop("nginx-exporter")  # so that `up` has to wait
    command = [ROOT / "stack", "up", "--local"]
    try:
        with subprocess.Popen(command, env=local.environment, stdout=subprocess.PIPE) as second:
            assert b"already running" in second.stdout.readline()
            second.send_signal(signal.SIGINT)
            assert second.wait(30) == 130
        assert requests.get(local.http, timeout=10).text == "Hello World!"
    finally:
        local.start("nginx-exporter")


def test_simultaneous_starts_wait_for_each_other() -> None:
    stack = LocalStack({})
    command = [ROOT / "stack", "up", "--local"]
    try:
        starts = [
            subprocess.Popen(
                command,
                env=stack.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(2)
        ]
        outputs = [start.communicate(timeout=180)[0] for start in starts]
        assert [start.returncode for start in starts] == [0, 0], outputs
        waited = next(output for output in outputs if "waiting for it" in output)
        assert f"another ./stack (process {starts[1 - outputs.index(waited)].pid})" in waited
        assert "already running" in waited
        assert requests.get(stack.http, timeout=10).text == "Hello World!"
    finally:
        stack.down()


def slow_request(stack: Stack) -> subprocess.Popen[bytes]:
    """Start a client whose request takes a minute; return when Flask works on it."""
    client = subprocess.Popen(
        ["curl", "--silent", "--max-time", "90", f"{stack.http}/?sleep=60"],
        stdout=subprocess.DEVNULL,
    )
    wait_for_in_flight(stack, 1)
    return client


def remains_of(stack: Stack) -> list[object]:
    """The processes or containers of a stack that still exist."""
    if isinstance(stack, ComposeStack):
        return list(stack.compose("ps", "--all", "--quiet").split())
    return list(processes_of(stack.run))


@pytest.mark.parametrize("how", ["--now", "a second Ctrl-C"])
def test_down_says_what_it_waits_for_and_can_be_cut_short(kind: str, how: str) -> None:
    with launch(kind) as stack, slow_request(stack) as client:
        command = [ROOT / "stack", "down"]
        output = subprocess.PIPE
        with subprocess.Popen(command, env=stack.environment, stdout=output) as down:
            assert down.stdout
            message = down.stdout.readline()
            assert re.search(rb"nginx-proxy .*finish(ing)? (its|their) requests", message)
            assert client.poll() is None
            if how == "--now":
                # The local supervisord is stopping and does not answer: its processes are orphaned.
                done = stack.command("down", "--now")
                assert done.returncode == 0, done.stderr
            else:
                down.send_signal(signal.SIGINT)
            assert down.wait(50) == 0  # sooner than the request ends
        assert remains_of(stack) == []
        assert client.wait(30) != 0


def test_a_stack_that_older_code_started_can_be_seen_and_ended() -> None:
    """The environment that an older start saved lacks newer settings."""
    with launch("local") as stack:
        assert isinstance(stack, LocalStack)
        saved = stack.run / "environment.json"
        older = json.loads(saved.read_text())
        for name in ("FLASK_APP_TIMEOUT", "GRAFANA", "GRAFANA_AUTOSTART", "PROMETHEUS_OPTIONS"):
            del older[name]
        saved.write_text(json.dumps(older))
        (stack.run / "programs.json").unlink()
        for command in (["status"], ["logs", "nginx-proxy"], ["top", "--once"], ["down"]):
            done = stack.command(*command)
            assert done.returncode == 0, done.stderr
        assert processes_of(stack.run) == []


def test_a_test_alert_without_a_receiver_says_so(local: LocalStack) -> None:
    done = local.command("test-alert")
    assert done.returncode == 1
    assert "no receiver is set" in done.stderr


def test_a_test_alert_shows_which_receiver_accepted_it(tmp_path: Path) -> None:
    with Receivers().serving() as receivers:
        (tmp_path / "alert_webhook_url").write_text(
            f"http://127.0.0.1:{receivers.http_port}/webhook\n"
        )
        (tmp_path / "alert_slack_url").write_text(f"http://127.0.0.1:{free_port()}/\n")
        (tmp_path / "alert_slak_url").write_text("https://example.com/\n")
        with launch("local", {"ALERT_SECRETS_DIR": str(tmp_path)}) as stack:
            status = stack.command("status")
            assert "alerts go to: webhook, Slack" in status.stdout
            assert "alert_slak_url is not read" in status.stdout
            done = stack.command("test-alert")
            assert "Prometheus' alerts arrive at Alertmanager" in done.stdout
            assert "webhook: accepted" in done.stdout
            assert "slack: NOT accepted" in done.stdout
            assert done.returncode == 1
            assert receivers.alerts("TestAlert", "firing")


def test_a_service_that_dies_is_started_again(local: LocalStack) -> None:
    before = local.main_process("nginx-exporter")
    local.kill("nginx-exporter")
    after = wait_until(
        lambda: (pid := local.main_process("nginx-exporter")) != before and pid, 20, "a new process"
    )
    wait_until(lambda: "nginx_up 1" in local.metrics("nginx-exporter"), 20, "it to serve")
    assert after != before


@pytest.mark.parametrize("service", ["flask-app", "nginx-proxy", "console-gate"])
def test_workers_without_a_master_end_before_the_next_one_starts(
    local: LocalStack, service: str
) -> None:
    """They hold the port. nginx's would also serve on, so only their end shows that it works."""
    with slow_request(local) as client:
        before = [process.pid for process in local.processes(service)]
        local.kill(service)
        wait_until(lambda: not any(map(alive, before)), 20, "all of the old processes to end")
        client.kill()
    wait_until(lambda: local.main_process(service) not in (0, *before), 20, "a new master")
    wait_until(lambda: local.command("status").returncode == 0, 20, "a healthy stack")
    assert requests.get(local.http, timeout=10).text == "Hello World!"


def test_logs_of_one_service(local: LocalStack) -> None:
    requests.get(f"{local.http}/info", timeout=10)
    wait_until(
        lambda: '"uri":"/info"' in local.command("logs", "nginx-proxy").stdout, 10, "its log"
    )


def test_other_users_cannot_read_the_logs(local: LocalStack) -> None:
    files = [path for path in (local.run / "logs").rglob("*.log*") if path.is_file()]
    assert len(files) > 5
    assert {
        path.name: path.stat().st_mode & 0o137 for path in files if path.stat().st_mode & 0o137
    } == {}


def test_logs_do_not_send_escape_sequences_to_the_terminal(local: LocalStack) -> None:
    local.stop("flask-app")
    try:
        hostile = {"Referer": b"\x1b[2J\xff", "User-Agent": b"\x1b[2J\xff"}
        assert requests.get(local.http, headers=hostile, timeout=30).status_code == 502
    finally:
        local.start("flask-app")
    text = wait_until(
        lambda: (text := local.command("logs").stdout).count("[2J") >= 2 and text,
        20,
        "both logs",
    )
    assert r"\u001b[2J" in text
    assert "\x1b" not in text


def test_logs_of_an_unknown_service_names_the_known_ones(local: LocalStack) -> None:
    done = local.command("logs", "nginx")
    assert done.returncode == 1
    assert "nginx-proxy" in done.stderr


def test_a_port_in_use_is_named_with_what_to_set_and_nothing_starts() -> None:
    other = LocalStack({})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other.ports["HTTP_PORT"] = taken.getsockname()[1]
        done = other.command("up", "--local")
        assert done.returncode == 1
        assert f"HTTP_PORT={other.ports['HTTP_PORT']}" in done.stderr
        assert "./stack up" in done.stderr
        assert processes_of(other.run) == []
    other.down()


def test_wrong_settings_are_refused_before_anything_starts() -> None:
    wrong = LocalStack({"GUNICORN_WORKERS": "many", "PROMETHEUS_RETENTION_TIME": "banana"})
    try:
        for arguments in (["up", "--local"], ["up"]):
            done = wrong.command(*arguments)
            assert done.returncode == 1
            assert "GUNICORN_WORKERS" in done.stderr
            assert "PROMETHEUS_RETENTION_TIME=banana" in done.stderr
            assert [path.name for path in wrong.run.iterdir()] == ["start.lock"]
    finally:
        wrong.down()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "foo"], "unknown arguments of up: foo"),
        (["test", "--help"], "Further arguments go to pytest"),
        (["logs", "nginx-proxy"], "nothing runs"),
    ],
)
def test_wrong_command_lines_get_a_clear_answer(arguments: list[str], message: str) -> None:
    stack = LocalStack({"DOCKER_HOST": "unix:///nowhere"})
    done = stack.command(*arguments)
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    stack.down()


def test_a_closed_pipe_ends_the_command_quietly(local: LocalStack) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{ROOT}/stack status | head -n 1; {ROOT}/stack --help | true"],
        env=local.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("flask-app")
    assert done.stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_full_and_read_only_disks_are_named() -> None:
    stack = LocalStack({})
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", stack.run], check=True)
    try:
        done = stack.command("up", "--local")
        assert f"the disk is full: 1 MB are free for {stack.run}" in done.stderr
        subprocess.run(["mount", "-o", "remount,ro", stack.run], check=True)
        done = stack.command("up", "--local")
        assert f"can't write to {stack.run}" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", stack.run], check=True)
        stack.down()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_status_names_a_disk_that_has_become_full() -> None:
    stack = LocalStack({})
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", stack.run], check=True)
    try:
        stack.up()
        (stack.run / "ballast").write_bytes(bytes(40_000_000))
        done = stack.command("status")
        assert f"free for {stack.run}" in done.stderr
        assert done.returncode == 1
        stack.command("down", "--now")
    finally:
        subprocess.run(["umount", "--lazy", stack.run], check=True)
        stack.down()


@pytest.mark.skipif(bool(engine_missing()), reason="no stack in containers")
def test_status_names_a_disk_in_a_container_that_has_become_full(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        "volumes:\n"
        "  nginx-cache:\n"
        "    driver_opts: {type: tmpfs, device: tmpfs, o: 'size=40m,uid=101,gid=101'}\n"
    )
    stack = ComposeStack({})
    stack.files.append(tmp_path / "small.yaml")
    try:
        stack.compose("up", "--build", "--wait", "nginx-proxy")
        assert "disk" not in stack.command("status").stderr
        fill = "head -c 20000000 /dev/zero >/var/cache/nginx/ballast"
        stack.compose("exec", "-T", "nginx-proxy", "sh", "-c", fill)
        done = stack.command("status")
        assert re.search(r"the disk is full: \d+ MB are free for nginx-proxy's /var", done.stderr)
        assert done.returncode == 1
    finally:
        stack.down()


@pytest.fixture
def broken() -> Iterator[LocalStack]:
    """A stack whose app imports a package that is not installed."""
    stack = LocalStack({"WSGI_APP": "unimportable:app"})
    yield stack
    stack.down()


def test_only_the_error_of_an_app_that_does_not_load_is_shown_and_its_log_is_kept(
    broken: LocalStack,
) -> None:
    done = broken.command("up", "--local")
    assert done.returncode == 1
    assert "flask-app failed to start" in done.stderr
    assert "ModuleNotFoundError: No module named 'no_such_package'" in done.stderr.splitlines()[-2]
    assert "\\n" not in done.stderr
    assert "not healthy after" not in done.stderr  # it did not wait for the timeout
    assert processes_of(broken.run) == []
    logs = broken.command("logs", "flask-app")
    assert "no_such_package" in logs.stdout
    assert "last run" in logs.stderr


def test_a_missing_health_check_is_reported_early(broken: LocalStack) -> None:
    broken.settings["WSGI_APP"] = "unchecked:app"
    done = broken.command("up", "--local")
    assert done.returncode == 1
    assert "404 instead of 200" in done.stderr
    assert "/flask-health-check" in done.stderr
    assert "not healthy after" not in done.stderr


@pytest.mark.skipif(bool(engine_missing()), reason="no stack in containers")
@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("unimportable:app", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("unchecked:app", "404 instead of 200"),
    ],
)
def test_containers_fail_as_early_and_with_the_same_message(app: str, message: str) -> None:
    # Grafana's image may be missing. Any image works here, because Grafana would start last.
    image = settings()["PROMETHEUS_IMAGE"]
    stack = ComposeStack({"WSGI_APP": app, "GRAFANA_IMAGE": image})
    try:
        done = stack.command("up")
        assert done.returncode == 1
        assert message in done.stderr
        assert "Other services may still run; ./stack down ends them" in done.stderr
        assert "flask-app" in stack.command("logs", "flask-app").stdout
        assert stack.command("status").returncode == 1
        assert stack.command("down").returncode == 0
        assert remains_of(stack) == []
    finally:
        stack.down()


def test_a_start_shows_only_its_own_lines(broken: LocalStack) -> None:
    log = broken.run / "logs" / "flask-app.log"
    log.parent.mkdir()
    log.write_text("of the run before\n")
    done = broken.command("up", "--local")
    assert "of the run before" not in done.stderr
    assert "of the run before" not in broken.command("logs", "flask-app").stdout
    assert (log.parent / "previous" / log.name).read_text() == "of the run before\n"


def test_orphaned_processes_are_reported_and_ended() -> None:
    with launch("local") as stack:
        assert isinstance(stack, LocalStack)
        os.kill(int((stack.run / "supervisord.pid").read_text()), signal.SIGKILL)
        for command in ("up --local", "status"):
            done = stack.command(*command.split())
            assert done.returncode == 1, done.stdout
            assert "still run" in done.stderr
            assert "./stack down" in done.stderr
        assert requests.get(stack.http, timeout=10).text == "Hello World!"
        done = stack.command("down")
        assert done.returncode == 0, done.stderr
        assert "killed" in done.stdout
        with pytest.raises(requests.ConnectionError):
            requests.get(stack.http, timeout=10)
        assert processes_of(stack.run) == []
        done = stack.command("up", "--local")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_an_attached_stack(number: signal.Signals) -> None:
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
            # Ctrl-C reaches all processes of a terminal.
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
        done = stack.command("down")
        assert done.returncode == 0
        assert processes_of(stack.run) == []
        assert stack.command("status").returncode == 1
