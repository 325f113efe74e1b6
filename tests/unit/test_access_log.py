"""Reading a growing log and giving its memory back, on the file systems at hand."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nginx_access_exporter import log as access_log
from nginx_access_exporter.log import CHUNK_BYTES, AccessLog
from tests.stacks import wait_until

PAGE = os.sysconf("SC_PAGESIZE")


class Writer:
    """Appends as nginx does: whole buffers, to the file that was at the path when it opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reopen()

    def reopen(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, *lines: bytes, end: bytes = b"\n") -> None:
        data = b"\n".join(lines) + end
        assert os.write(self._fd, data) == len(data)


@pytest.fixture(params=["disk", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "access.log"


@pytest.fixture
def writer(path: Path) -> Writer:
    return Writer(path)


def read(log: AccessLog) -> list[bytes]:
    """The new lines; what was read is given back."""
    lines = []
    for chunk in log.chunks():
        lines += chunk.split(b"\n")
        log.release()
    return lines


def numbered(start: int, stop: int) -> list[bytes]:
    return [b"line %07d" % n for n in range(start, stop)]


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_log_that_is_not_there_yet_is_read_when_it_appears(path: Path) -> None:
    log = AccessLog(path)
    assert read(log) == []
    assert log.backlog == 0
    Writer(path).write(b"first")
    assert read(log) == [b"first"]


def test_every_line_is_read_once(path: Path, writer: Writer) -> None:
    log = AccessLog(path)
    lines = []
    for start in range(0, 10_000, 100):
        writer.write(*numbered(start, start + 100))
        lines += read(log)
    assert lines == numbered(0, 10_000)
    assert read(log) == []


def test_half_a_line_waits_for_its_end(path: Path, writer: Writer) -> None:
    log = AccessLog(path)
    writer.write(b"whole", b"ha", end=b"")
    assert read(log) == [b"whole"]
    assert log.backlog == 2
    assert read(log) == []
    writer.write(b"lf", b"next")
    assert read(log) == [b"half", b"next"]


def test_lines_across_the_ends_of_chunks_stay_whole(path: Path, writer: Writer) -> None:
    lines = numbered(0, 4 * CHUNK_BYTES // len(b"line 0000000\n"))
    writer.write(*lines)
    chunks = list(AccessLog(path).chunks())
    assert len(chunks) > 3
    assert max(map(len, chunks)) <= CHUNK_BYTES
    assert [line for chunk in chunks for line in chunk.split(b"\n")] == lines


def test_what_is_read_takes_no_memory(path: Path, writer: Writer) -> None:
    log = AccessLog(path)
    for _ in range(20):
        writer.write(*numbered(0, 100_000))
        read(log)
    assert path.stat().st_size > 20 * CHUNK_BYTES
    assert allocated(path) <= 2 * PAGE


def test_a_reader_without_a_position_begins_after_the_holes(path: Path, writer: Writer) -> None:
    writer.write(*numbered(0, 12_345))
    read(AccessLog(path))
    writer.write(*numbered(12_345, 20_000))
    assert read(AccessLog(path)) == numbered(12_345, 20_000)
    assert read(AccessLog(path)) == []


def test_nothing_but_a_hole_is_no_backlog(path: Path, writer: Writer) -> None:
    writer.write(b"x" * (PAGE - 1))
    read(AccessLog(path))
    assert allocated(path) == 0
    log = AccessLog(path)
    assert read(log) == []
    assert log.backlog == 0


def test_a_reader_with_a_position_needs_no_holes(path: Path, writer: Writer) -> None:
    writer.write(*numbered(0, 100))
    log = AccessLog(path)
    assert len(list(log.chunks())) == 1
    writer.write(*numbered(100, 200))
    assert read(AccessLog(path, log.position)) == numbered(100, 200)


def test_a_position_in_another_file_is_of_no_use(path: Path, writer: Writer) -> None:
    writer.write(*numbered(0, 100))
    log = AccessLog(path)
    read(log)
    path.rename(path.with_suffix(".old"))
    Writer(path).write(*numbered(0, 200))
    assert read(AccessLog(path, log.position)) == numbered(0, 200)


def test_a_truncated_log_is_read_from_its_start(
    path: Path, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    log = AccessLog(path)
    writer.write(*numbered(0, 1000))
    read(log)
    os.truncate(path, 0)
    writer.write(b"after")
    assert read(log) == [b"after"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was truncated: reading it from its start"
    ]


def test_a_renamed_log_is_read_until_nginx_has_left_it(
    path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "SECONDS_OF_GRACE_FOR_REPLACED", 0.3)
    log = AccessLog(path)
    writer.write(b"one")
    lines = read(log)
    path.rename(path.with_suffix(".1"))
    writer.write(b"two")
    lines += read(log)
    late = Writer(path.with_suffix(".1"))
    writer.reopen()
    writer.write(b"four")
    lines += read(log)
    late.write(b"three")

    def all_read() -> bool:
        lines.extend(read(log))
        return len(lines) == 4

    wait_until(all_read, 5, "the new file to be read")
    assert lines == [b"one", b"two", b"three", b"four"]


def test_a_deleted_log_is_read_on(path: Path, writer: Writer) -> None:
    log = AccessLog(path)
    writer.write(b"one")
    lines = read(log)
    path.unlink()
    writer.write(b"two")
    assert lines + read(log) == [b"one", b"two"]


def test_a_line_without_end_is_handed_out_in_pieces(path: Path, writer: Writer) -> None:
    log = AccessLog(path)
    writer.write(b"x" * (3 * CHUNK_BYTES), b"next")
    chunks = list(log.chunks())
    assert max(map(len, chunks)) <= CHUNK_BYTES
    assert chunks[-1].split(b"\n")[-1] == b"next"
    assert log.backlog == 0


def test_zeroes_are_skipped_however_many(path: Path, writer: Writer) -> None:
    writer.write(b"\0" * (2 * CHUNK_BYTES + 5) + b"first", b"second")
    assert read(AccessLog(path)) == [b"first", b"second"]


def test_a_file_system_without_holes_is_told_once_and_the_log_emptied_now_and_then(
    path: Path,
    writer: Writer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fallocate(*_: int) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(access_log._libc, "fallocate", fallocate)
    monkeypatch.setattr(access_log, "MAX_BYTES_WITHOUT_HOLES", 100_000)
    log = AccessLog(path)
    lines = []
    for start in range(0, 100_000, 1000):
        writer.write(*numbered(start, start + 1000))
        lines += read(log)
        assert allocated(path) <= 100_000 + 2 * 13_000
    assert lines == numbered(0, 100_000)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "Operation not supported" in warnings[0].getMessage()
