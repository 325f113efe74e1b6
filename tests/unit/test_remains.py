"""What the tests leave running is found, so that the run fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from local.settings import BIN
from tests import remains
from tests.stacks import free_port, wait_until


def test_a_process_is_found_until_it_ends(tmp_path: Path) -> None:
    command = ["sleep", "60"]
    with subprocess.Popen(command) as sleeping:
        name = f"{sleeping.pid} sleep 60"
        wait_until(lambda: name in remains.processes(tmp_path), 10, "the process")
        sleeping.kill()
    assert name not in remains.processes(tmp_path)


def test_nginx_is_found_by_its_folder(tmp_path: Path) -> None:
    """It overwrites its environment with its title."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = " ".join(f"{kind}_temp_path {kind};" for kind in kinds)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {folders} server {{ listen 127.0.0.1:{free_port()}; }} }}\n"
    )

    def running() -> bool:  # other tests have an nginx of their own
        return any(f"{tmp_path}/" in each for each in remains.processes(tmp_path))

    command = [BIN / "nginx", "-e", "stderr", "-p", tmp_path, "-c", tmp_path / "nginx.conf"]
    with subprocess.Popen(command) as nginx:
        wait_until(running, 10, "nginx's title")
        nginx.terminate()
    assert not running()


def test_other_processes_are_not_found(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "STACK_TEST_RUN"}
    with subprocess.Popen(["sleep", "60"], env=environment) as other:
        assert f"{other.pid} sleep 60" not in remains.processes(tmp_path)
        other.kill()
