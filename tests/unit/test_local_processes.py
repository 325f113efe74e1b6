"""Messages of `./stack` about unhealthy services, and about folders in which none can run."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.processes import Processes, check
from local.settings import StackError
from tests.stacks import free_port


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the status in the path."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.removeprefix("/")))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_health_check_that_answers_200_has_no_problem(server: str) -> None:
    assert check(f"{server}/200") == ""


@pytest.mark.parametrize("status", ["204", "404", "503"])
def test_another_answer_is_named_with_its_address(server: str, status: str) -> None:
    problem = check(f"{server}/{status}")
    assert problem.startswith(f"{server}/{status}: ")
    assert status in problem.removeprefix(f"{server}/{status}")


def test_a_service_that_does_not_listen_is_named_with_its_address() -> None:
    address = f"http://127.0.0.1:{free_port()}/200"
    assert "refused" in check(address).removeprefix(address)


def test_a_health_check_uses_no_proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert check(f"{server}/200") == ""


@pytest.mark.parametrize("name", ["my folder", "it's", "50%", "a;b", "x" * 100])
def test_a_path_that_supervisor_cannot_use_is_refused(name: str) -> None:
    with pytest.raises(StackError, match="STACK_RUN_DIR"):
        Processes(Path("/run", name)).check_paths()
