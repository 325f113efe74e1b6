"""The processes of a session are ended, also those that they start meanwhile."""

from __future__ import annotations

import subprocess

from local import orphans

STARTS_ANOTHER = "trap 'sleep 60 & exit' TERM; echo ready; while :; do sleep 0.01; done"


def test_a_process_that_appears_meanwhile_is_ended() -> None:
    command = ["sh", "-c", STARTS_ANOTHER]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as shell:
        assert shell.stdout
        assert shell.stdout.readline() == b"ready\n"
        orphans.end(lambda: orphans.session(shell.pid))
        assert orphans.session(shell.pid) == []
