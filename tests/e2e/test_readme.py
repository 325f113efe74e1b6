"""The README's tour as a reader types it, on both kinds of stack.

Only the ports differ, and the rules' windows, which are shorter so that the alert of the tour fires
within a minute.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from local.settings import ROOT
from tests.alerting import faster_configuration
from tests.stacks import Stack, grafana_image, launch, wait_until

BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
START, SEE, HITS, LOOK, STORM, ASK = BLOCKS
ALERT = "CacheMissRatioHigh"


class Reader:
    """Somebody with a terminal in the repository's folder."""

    def __init__(self, stack: Stack) -> None:
        self._env = stack.environment
        self._places = {
            "URL=http://localhost ": f"URL={stack.http} ",
            "http://localhost:9093": stack.alertmanager,
        }

    def type(self, commands: str) -> str:
        """Run commands in a shell and return their output; fail the test if one fails."""
        done = subprocess.run(
            ["bash", "-ec", self._placed(commands)],
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout

    def start(self, command: str) -> subprocess.Popen[str]:
        """Run one command in a second terminal."""
        return subprocess.Popen(
            self._placed(command).partition("#")[0].split(),
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _placed(self, commands: str) -> str:
        for written, here in self._places.items():
            commands = commands.replace(written, here)
        return commands


@pytest.fixture
def stack(kind: str, tmp_path: Path) -> Iterator[Stack]:
    with launch(kind, faster_configuration(tmp_path)) as running:
        yield running


def test_the_tour_ends_with_an_alert(stack: Stack) -> None:
    reader = Reader(stack)
    if stack.kind == "local" or grafana_image():
        output = reader.type(START)
        assert "healthy" in output.lower()
        pages = re.findall(r"http://\S+", output.partition("\nthe app ")[2])
        assert len(pages) >= 3
        assert {
            page: requests.get(page, timeout=10).status_code for page in pages
        } == dict.fromkeys(pages, 200)
    seen = re.findall(r"X-Cache-Status: (\w+)", reader.type(SEE))
    assert seen == ["MISS", "HIT"]
    address = SEE.splitlines()[0]

    def hits_in_top() -> re.Match[str] | None:
        # Hits anew each time: the first `top` installs its packages, and windows are short here.
        counted = {
            status: int(number)
            for number, status in re.findall(r"(\d+) (\w+)", reader.type(f"{address}\n{HITS}"))
        }
        assert sum(counted.values()) == 300
        assert counted["HIT"] > 290
        return re.search(r"/cache-me +\S+ +0 % +(100|9\d\.?\d*) %", reader.type(LOOK))

    wait_until(hits_in_top, 60, "the hits in ./stack top")
    storm = reader.start(STORM)
    try:
        wait_until(
            lambda: ALERT in reader.type(f"{ASK.strip()} || true"), 120, f"{ALERT} in Alertmanager"
        )
    finally:
        storm.send_signal(signal.SIGINT)
        output, _ = storm.communicate(timeout=60)
    assert re.search(r"by cache status +MISS: \d+", output), output
    assert reader.type("./stack status")
    reader.type("./stack down")


def test_every_block_of_commands_is_run() -> None:
    assert len(BLOCKS) == 6
