"""Fetches Grafana for local processes: `./stack grafana` has the version of `.env` in `.local/`.

grafana.com lists the packages of a version with their checksums. The list is the only source of
both: the shorter addresses below dl.grafana.com/oss/release/ are rewritten after a release and then
contradict their own checksum files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from local.settings import StackError, grafana_home

VERSIONS_URL = "https://grafana.com/api/grafana/versions"
DOWNLOADS_URL = "https://dl.grafana.com"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # a download that breaks off is continued this often by itself
CHUNK = 1024 * 1024
MEGABYTE = 1_000_000
ELSEWHERE = "Or unpack Grafana yourself and set GRAFANA_HOME to its folder."

Progress = Callable[[str], None]


def install(values: dict[str, str], progress: Progress) -> Path:
    """Fetch the Grafana of `.env`'s version into `.local/grafana/`, and return its folder.

    The folder is complete if it exists: it gets its name when everything is unpacked. An
    interrupted download is continued.

    Args:
        values: settings; GRAFANA_IMAGE says which version, GRAFANA_VERSIONS_URL and
            GRAFANA_DOWNLOADS_URL replace the addresses (of a mirror, for example).
        progress: is called with each step.

    Raises:
        StackError: the version is unknown, the network fails, or the checksum is wrong.
    """
    home = grafana_home(values)
    if (home / "bin" / "grafana").is_file():
        progress(f"Grafana {home.name} is in {home}")
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with _lock(home.parent / "lock", progress):
        if not (home / "bin" / "grafana").is_file():
            package = _find_package(home.name, values)
            archive = home.parent / f"{home.name}.tar.gz"
            _download(package["url"], archive, progress)
            _verify(archive, package["sha256"], progress)
            _unpack(archive, home, progress)
            archive.unlink()
    return home


@contextlib.contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Make a second `./stack grafana` wait for this one."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another ./stack grafana is running: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _find_package(tag: str, values: dict[str, str]) -> dict[str, str]:
    """The list's entry for this machine, with its `url` and `sha256`."""
    version = tag.replace("-security-", "+security-")  # a Docker tag cannot have a plus sign
    if not re.fullmatch(r"\d+\.\d+\.\d+(\+security-\d+)?", version):
        raise StackError(
            f"GRAFANA_IMAGE in .env has the tag {tag!r}: expected a version such as 13.2.3"
        )
    machine = os.uname().machine
    if not sys.platform.startswith("linux") or machine not in ARCHITECTURES:
        raise StackError(f"Grafana is fetched for Linux on amd64 or arm64, not for {machine}")
    url = f"{values.get('GRAFANA_VERSIONS_URL') or VERSIONS_URL}/{version}"
    try:
        with _open(url) as answer:
            listed = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.NOT_FOUND:
            raise StackError(
                f"Grafana {version} is not listed at {url}: check GRAFANA_IMAGE in .env"
            ) from error
        raise
    except ValueError as error:
        raise StackError(f"{url} did not answer with JSON: {error}") from error
    for package in _packages(listed):
        if package["os"] == "linux" and package["arch"] == ARCHITECTURES[machine]:
            mirror = values.get("GRAFANA_DOWNLOADS_URL") or DOWNLOADS_URL
            return package | {"url": package["url"].replace(DOWNLOADS_URL, mirror, 1)}
    raise StackError(
        f"{url} lists no archive of Grafana {version} for linux/{ARCHITECTURES[machine]}. "
        + ELSEWHERE
    )


def _packages(listed: Any) -> list[dict[str, str]]:  # noqa: ANN401 - it is JSON from elsewhere
    """The archives of a version with a checksum, at addresses that do not change."""
    packages = listed.get("packages") if isinstance(listed, dict) else None
    return [
        package
        for package in packages or []
        if all(isinstance(package.get(key), str) for key in ("os", "arch", "url", "sha256"))
        and package["url"].endswith(".tar.gz")
        and "/oss/release/" not in package["url"]
    ]


def _download(url: str, archive: Path, progress: Progress) -> None:
    """Fetch a file, continuing after what an earlier try has fetched already."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _download_rest(url, archive, progress)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) or attempt == ATTEMPTS:
                raise StackError(
                    f"the download of {url} failed: {error}. "
                    f"./stack grafana continues it. {ELSEWHERE}"
                ) from error
            progress(f"the download broke off ({error}): continuing")
        else:
            return


def _download_rest(url: str, archive: Path, progress: Progress) -> None:
    have = archive.stat().st_size if archive.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # it is complete, or too long: _verify finds out
        raise
    with answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        length = answer.headers["Content-Length"]
        if not length:
            raise ConnectionError("the server does not say how long the file is")
        total = have + int(length)
        progress(f"fetching {total / MEGABYTE:.0f} MB from {url}")
        if have:
            progress(f"continuing after the first {have / MEGABYTE:.0f} MB")
        with archive.open("ab" if have else "wb") as file:
            _copy(answer, file, have, total, progress)
    if archive.stat().st_size != total:
        raise ConnectionError(f"{archive.stat().st_size} of {total} bytes arrived")


def _copy(
    source: http.client.HTTPResponse, target: BinaryIO, have: int, total: int, progress: Progress
) -> None:
    """Copy until the end, and report every tenth."""
    tenths = have * 10 // total
    while chunk := source.read(CHUNK):
        target.write(chunk)
        have += len(chunk)
        if have * 10 // total > tenths:
            tenths = have * 10 // total
            progress(f"{tenths * 10} %")


def _verify(archive: Path, expected: str, progress: Progress) -> None:
    """Remove the archive and raise StackError if its SHA-256 is not the listed one."""
    progress("comparing the checksum")
    with archive.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected.lower():
        archive.unlink()
        raise StackError(
            f"the archive's SHA-256 is {actual}, grafana.com lists {expected}: it was damaged or "
            "replaced on its way, and has been removed. Run ./stack grafana again."
        )


def _unpack(archive: Path, home: Path, progress: Progress) -> None:
    """Unpack into a temporary folder, and rename it when it is complete."""
    progress(f"unpacking into {home}")
    partial = home.with_name(f"{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    command = ["tar", "-xzf", archive, "-C", partial, "--strip-components=1", "--no-same-owner"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (partial / "bin" / "grafana").is_file():
        shutil.rmtree(partial)
        why = done.stderr.strip() or "it has no bin/grafana"
        raise StackError(f"{archive} could not be unpacked: {why}")
    partial.rename(home)


def _open(url: str) -> http.client.HTTPResponse:
    """Open a URL; raise StackError if nothing answers there."""
    try:
        return urllib.request.urlopen(url, timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise StackError(
            f"{url} cannot be reached ({reason}): is there a network, or a proxy to set in "
            f"https_proxy? {ELSEWHERE}"
        ) from error
