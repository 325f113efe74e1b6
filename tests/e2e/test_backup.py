"""The commands of docs/backup.md: a restore brings back data that was deleted after the backup."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import requests

from local.settings import ROOT
from tests.alerting import post_silence
from tests.e2e.test_own_app import app_command
from tests.stacks import ComposeStack, Stack, grafana_image, launch, run, wait_until

BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/backup.md").read_text(), re.M | re.S)
BACK_UP = {"compose": BLOCKS[0], "local": BLOCKS[1]}
RESTORE = {"compose": BLOCKS[2], "local": BLOCKS[3]}
DATA = ("app-data", "prometheus", "alertmanager", "grafana")
COMMENT = "a silence to be kept"


def test_data_is_there_again_after_a_restore(kind: str, tmp_path: Path) -> None:
    with launch(kind) as stack:
        app_command(stack, "sh", "-c", 'echo kept >"$APP_DATA_DIR/file"')
        post_silence(stack, "TargetDown", 3600, COMMENT, {}).raise_for_status()
        wait_until(lambda: stack.query('up{job="prometheus"}'), 60, "a sample")
        then = time.time()

        type_in(stack, BACK_UP[kind], tmp_path)
        lose_data(stack)
        type_in(stack, RESTORE[kind], tmp_path)

        assert "kept" in app_command(stack, "sh", "-c", 'cat "$APP_DATA_DIR/file"').splitlines()
        assert silences(stack) == [COMMENT]
        assert stack.query(f'up{{job="prometheus"}} @ {then}')
        assert (tmp_path / ".env").read_text() == (ROOT / ".env").read_text()
        assert (tmp_path / "prometheus" / "secrets" / ".gitignore").exists()
        assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700


def test_every_block_of_commands_is_run() -> None:
    assert len(BLOCKS) == len(BACK_UP) + len(RESTORE)


def type_in(stack: Stack, commands: str, folder: Path) -> None:
    """Run commands as a reader would, but keep the backup and the settings in a folder."""
    commands = commands.replace("backup", str(folder / "backup"))
    commands = commands.replace("tar -xf", f"tar -C {folder} -xf")
    commands = commands.replace(".local/run", str(stack.run))
    if isinstance(stack, ComposeStack) and not grafana_image():
        services = stack.compose("config", "--services").split()
        services.remove("grafana")
        commands = re.sub(r"^.* grafana:.*\n|^.* - grafana.*\n| grafana$", "", commands, flags=re.M)
        commands = commands.replace("create --build", f"create --build {' '.join(services)}")
        commands = commands.replace("./stack up", f"docker compose up --wait {' '.join(services)}")
    run(["bash", "-ec", commands], stack.environment)


def lose_data(stack: Stack) -> None:
    if isinstance(stack, ComposeStack):
        stack.compose("down", "--volumes")
    else:
        run([ROOT / "stack", "down"], stack.environment)
        for name in DATA:
            shutil.rmtree(stack.run / name)


def silences(stack: Stack) -> list[str]:
    found = requests.get(f"{stack.alertmanager}/api/v2/silences", timeout=10).json()
    return [each["comment"] for each in found]
