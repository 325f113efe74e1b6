"""`./stack grafana`, against a server that answers in the form of grafana.com."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from local import grafana, settings
from local.settings import ROOT, StackError
from tests.stacks import LocalStack

VERSION = "13.2.3"
MACHINE = grafana.ARCHITECTURES[os.uname().machine]
ARCHIVE = f"/grafana/release/{VERSION}/grafana_{VERSION}_34846740809_linux_{MACHINE}.tar.gz"
# Answers 200 to anything, at the socket that Grafana would take.
SERVER = b"""#!/usr/bin/env python3
import http.server, os, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["GF_PATHS_BUNDLED_PLUGINS"].encode())
    def log_message(self, *_):
        pass    # it would read the client's address, which a socket has not
socketserver.UnixStreamServer(os.environ["GF_SERVER_SOCKET"], Handler).serve_forever()
"""


def package(files: dict[str, bytes]) -> bytes:
    """A release archive with these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"grafana-{VERSION}/{name}")
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


COMPLETE = package({"bin/grafana": SERVER, "public/large": os.urandom(3_000_000)})


class Site(ThreadingHTTPServer):
    """grafana.com and dl.grafana.com in one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.versions = {VERSION}
        self.content = COMPLETE
        self.cut_off: list[int] = []  # the bytes after which each of the next downloads breaks off
        self.asked: list[str] = []  # the Range header of each download
        self.packages: list[dict[str, Any]] = [
            {"os": "deb", "arch": MACHINE, "url": "https://dl.grafana.com/x.deb", "sha256": "0"},
            {
                "os": "linux",
                "arch": MACHINE,
                "url": f"https://dl.grafana.com/oss/release/grafana-{VERSION}.linux.tar.gz",
                "sha256": "0",
            },
            {
                "os": "linux",
                "arch": MACHINE,
                "url": f"https://dl.grafana.com{ARCHIVE}",
                "sha256": hashlib.sha256(COMPLETE).hexdigest(),
            },
        ]

    @property
    def settings(self) -> dict[str, str]:
        """The settings with which `./stack grafana` uses this site."""
        return {
            "GRAFANA_IMAGE": f"grafana/grafana:{VERSION}",
            "GRAFANA_VERSIONS_URL": f"{self.url}/api/grafana/versions",
            "GRAFANA_DOWNLOADS_URL": self.url,
        }


class Answer(BaseHTTPRequestHandler):
    """The list of a version's packages, and the archive, with ranges."""

    server: Site

    def do_GET(self) -> None:
        versions, _, version = self.path.rpartition("/")
        if versions == "/api/grafana/versions" and version in self.server.versions:
            self._send(200, json.dumps({"packages": self.server.packages}).encode())
        elif self.path == ARCHIVE:
            self._send_archive()
        else:
            self._send(404, b'{"code":"NotFound"}')

    def _send_archive(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.asked.append(asked)
        found = re.fullmatch(r"bytes=(\d+)-", asked)
        begin = int(found[1]) if found else 0
        content = self.server.content[begin:]
        if found and not content:
            self._send(416, b"")
            return
        most = self.server.cut_off.pop(0) if self.server.cut_off else len(content)
        self._send(206 if found else 200, content, most)

    def _send(self, status: int, content: bytes, most: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:most])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the archives and of the unpacked Grafana, instead of this checkout's own."""
    monkeypatch.setattr(settings, "LOCAL", tmp_path)
    return tmp_path / "grafana"


def install(site: Site) -> list[str]:
    """Install from the site; returns the progress messages."""
    messages: list[str] = []
    grafana.install(site.settings, messages.append)
    return messages


def content(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"lock"}


def test_grafana_is_fetched_checked_and_unpacked(site: Site, folder: Path) -> None:
    messages = "\n".join(install(site))
    assert (folder / VERSION / "bin" / "grafana").read_bytes() == SERVER
    assert os.access(folder / VERSION / "bin" / "grafana", os.X_OK)
    assert "3 MB" in messages
    assert "100 %" in messages
    assert content(folder) == {VERSION}


def test_it_is_fetched_once(site: Site, folder: Path) -> None:
    install(site)
    install(site)
    assert len(site.asked) == 1
    assert content(folder) == {VERSION}


def test_local_processes_use_what_was_fetched(site: Site, folder: Path, tmp_path: Path) -> None:
    assert settings.grafana_program(site.settings | {"PATH": str(tmp_path)}) == ""
    install(site)
    home = folder / VERSION
    assert settings.grafana_program(site.settings) == str(home / "bin" / "grafana")
    env = settings.environment(site.settings, tmp_path)
    assert env["GRAFANA_HOME"] == str(home)
    assert env["GRAFANA_AUTOSTART"] == "true"
    assert env["GF_PATHS_BUNDLED_PLUGINS"] == str(home / "data" / "plugins-bundled")


def test_an_archive_with_a_wrong_checksum_is_removed(site: Site, folder: Path) -> None:
    site.content = package({"bin/grafana": b"something else"})
    with pytest.raises(StackError, match=r"SHA-256 is \w+, grafana.com lists"):
        install(site)
    assert content(folder) == set()
    site.content = COMPLETE
    install(site)


def test_a_download_that_breaks_off_is_continued(site: Site, folder: Path) -> None:
    site.cut_off = [1_000_000]
    messages = install(site)
    assert site.asked == ["", "bytes=1000000-"]
    assert any("broke off" in line for line in messages)
    assert content(folder) == {VERSION}


def test_the_next_command_continues_an_unfinished_download(site: Site, folder: Path) -> None:
    site.cut_off = [500_000] * grafana.ATTEMPTS
    with pytest.raises(StackError, match=r"\./stack grafana continues it"):
        install(site)
    assert content(folder) == {f"{VERSION}.tar.gz"}
    install(site)
    assert site.asked[-1] == f"bytes={500_000 * grafana.ATTEMPTS}-"
    assert content(folder) == {VERSION}


def test_a_complete_archive_is_not_fetched_again(site: Site, folder: Path) -> None:
    folder.mkdir()
    (folder / f"{VERSION}.tar.gz").write_bytes(COMPLETE)
    install(site)
    assert content(folder) == {VERSION}


def test_an_archive_that_cannot_be_unpacked_makes_no_folder(site: Site, folder: Path) -> None:
    site.content = COMPLETE[: len(COMPLETE) // 2]
    site.packages[-1]["sha256"] = hashlib.sha256(site.content).hexdigest()
    with pytest.raises(StackError, match="could not be unpacked"):
        install(site)
    assert content(folder) == {f"{VERSION}.tar.gz"}


def test_an_archive_without_grafana_is_refused(site: Site, folder: Path) -> None:
    site.content = package({"README.md": b""})
    site.packages[-1]["sha256"] = hashlib.sha256(site.content).hexdigest()
    with pytest.raises(StackError, match="it has no bin/grafana"):
        install(site)
    assert VERSION not in content(folder)


def test_an_unknown_version_is_named(site: Site, folder: Path) -> None:
    values = site.settings | {"GRAFANA_IMAGE": "grafana/grafana:13.2.99"}
    with pytest.raises(StackError, match=r"Grafana 13.2.99 is not listed at .*GRAFANA_IMAGE"):
        grafana.install(values, print)
    assert content(folder) == set()


def test_a_tag_that_is_not_a_version_is_refused(site: Site, folder: Path) -> None:
    values = site.settings | {"GRAFANA_IMAGE": "grafana/grafana:latest"}
    with pytest.raises(StackError, match="'latest': expected a version"):
        grafana.install(values, print)
    assert content(folder) == set()


@pytest.mark.usefixtures("folder")
def test_a_version_without_a_package_for_this_machine_is_named(site: Site) -> None:
    del site.packages[-1]  # leaves a .deb, and an archive at an address whose content changes
    with pytest.raises(StackError, match=f"lists no archive .* linux/{MACHINE}"):
        install(site)


@pytest.mark.usefixtures("folder")
def test_without_a_network_it_says_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        values = {
            "GRAFANA_IMAGE": f"grafana/grafana:{VERSION}",
            "GRAFANA_VERSIONS_URL": f"http://127.0.0.1:{unused.getsockname()[1]}",
        }
        with pytest.raises(StackError, match=r"cannot be reached .*network.*GRAFANA_HOME"):
            grafana.install(values, print)


def test_two_at_once_fetch_it_once(site: Site, folder: Path) -> None:
    threads = [threading.Thread(target=install, args=[site]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(site.asked) == 1
    assert content(folder) == {VERSION}


def test_the_command_adds_grafana_to_the_running_stack(site: Site) -> None:
    """In this checkout's own `.local/`, under a version that no Grafana has."""
    version = f"0.0.{site.server_port}"
    site.versions.add(version)
    stack = LocalStack(site.settings | {"GRAFANA_IMAGE": f"grafana/grafana:{version}"})
    env = {key: value for key, value in stack.environment.items() if key != "GRAFANA_HOME"}
    try:
        for command in ("up", "grafana", "status"):
            local = ["--local"] if command == "up" else []
            done = subprocess.run(
                [ROOT / "stack", command, *local],
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            runs = re.search(r"^grafana +RUNNING +healthy", done.stdout, re.M)
            assert bool(runs) == (command != "up")
        answer = requests.get(f"http://127.0.0.1:{stack.ports['GRAFANA_PORT']}", timeout=10)
        assert answer.text == str(ROOT / f".local/grafana/{version}/data/plugins-bundled")
    finally:
        stack.down()
        shutil.rmtree(ROOT / ".local" / "grafana" / version, ignore_errors=True)
