"""Reads a growing log and frees its memory, on disk and in memory."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nginx_access_exporter import log as access_log
from nginx_access_exporter.log import CHUNK_BYTES, AccessLog, ForeignLogError
from tests.stacks import wait_until

START = b"line "
PAGE = os.sysconf("SC_PAGESIZE")


class Writer:
    """Appends whole buffers as nginx does, also to a file that was renamed after it was opened."""

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
    """Returns the new lines, and frees them."""
    lines = []
    for chunk in log.chunks():
        lines += chunk.split(b"\n")
        log.release()
    return lines


def numbered(start: int, stop: int) -> list[bytes]:
    return [START + b"%07d" % n for n in range(start, stop)]


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_log_is_read_when_it_appears(path: Path) -> None:
    log = AccessLog(path, (START,))
    assert read(log) == []
    assert log.backlog == 0
    Writer(path).write(b"line first")
    assert read(log) == [b"line first"]


def test_every_line_is_read_once(path: Path, writer: Writer) -> None:
    log = AccessLog(path, (START,))
    lines = []
    for start in range(0, 10_000, 100):
        writer.write(*numbered(start, start + 100))
        lines += read(log)
    assert lines == numbered(0, 10_000)
    assert read(log) == []


def test_half_a_line_waits_for_its_end(path: Path, writer: Writer) -> None:
    log = AccessLog(path, (START,))
    writer.write(b"line whole", b"li", end=b"")
    assert read(log) == [b"line whole"]
    assert log.backlog == 2
    assert read(log) == []
    writer.write(b"ne half", b"line next")
    assert read(log) == [b"line half", b"line next"]


def test_lines_across_the_ends_of_chunks_stay_whole(path: Path, writer: Writer) -> None:
    lines = numbered(0, 4 * CHUNK_BYTES // len(b"line 0000000\n"))
    writer.write(*lines)
    chunks = list(AccessLog(path, (START,)).chunks())
    assert len(chunks) > 3
    assert max(map(len, chunks)) <= CHUNK_BYTES
    assert [line for chunk in chunks for line in chunk.split(b"\n")] == lines


def test_the_part_that_was_read_takes_no_memory(path: Path, writer: Writer) -> None:
    log = AccessLog(path, (START,))
    for _ in range(20):
        writer.write(*numbered(0, 100_000))
        read(log)
    assert path.stat().st_size > 20 * CHUNK_BYTES
    assert allocated(path) <= 2 * PAGE


def test_a_reader_without_a_position_begins_after_the_holes(path: Path, writer: Writer) -> None:
    writer.write(*numbered(0, 12_345))
    read(AccessLog(path, (START,)))
    writer.write(*numbered(12_345, 20_000))
    assert read(AccessLog(path, (START,))) == numbered(12_345, 20_000)
    assert read(AccessLog(path, (START,))) == []


def test_a_hole_is_no_backlog(path: Path, writer: Writer) -> None:
    writer.write(START.ljust(PAGE - 1, b"x"))
    read(AccessLog(path, (START,)))
    assert allocated(path) == 0
    log = AccessLog(path, (START,))
    assert read(log) == []
    assert log.backlog == 0


def test_a_reader_with_a_position_needs_no_holes(path: Path, writer: Writer) -> None:
    writer.write(*numbered(0, 100))
    log = AccessLog(path, (START,))
    assert len(list(log.chunks())) == 1
    writer.write(*numbered(100, 200))
    assert read(AccessLog(path, (START,), log.position)) == numbered(100, 200)


def test_a_position_in_another_file_is_ignored(path: Path, writer: Writer) -> None:
    writer.write(*numbered(0, 100))
    log = AccessLog(path, (START,))
    read(log)
    path.rename(path.with_suffix(".old"))
    Writer(path).write(*numbered(0, 200))
    assert read(AccessLog(path, (START,), log.position)) == numbered(0, 200)


def test_a_truncated_log_is_read_from_its_start(
    path: Path, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    log = AccessLog(path, (START,))
    writer.write(*numbered(0, 1000))
    read(log)
    os.truncate(path, 0)
    writer.write(b"line after")
    assert read(log) == [b"line after"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was truncated: reading it from its start"
    ]


def test_a_renamed_log_is_read_until_nginx_writes_to_the_new_one(
    path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "SECONDS_OF_GRACE_FOR_REPLACED", 0.3)
    log = AccessLog(path, (START,))
    writer.write(b"line one")
    lines = read(log)
    path.rename(path.with_suffix(".1"))
    writer.write(b"line two")
    lines += read(log)
    late = Writer(path.with_suffix(".1"))
    writer.reopen()
    writer.write(b"line four")
    lines += read(log)
    late.write(b"line three")

    def all_read() -> bool:
        lines.extend(read(log))
        return len(lines) == 4

    wait_until(all_read, 5, "the new file to be read")
    assert lines == [b"line one", b"line two", b"line three", b"line four"]


def test_a_deleted_log_is_still_read(path: Path, writer: Writer) -> None:
    log = AccessLog(path, (START,))
    writer.write(b"line one")
    lines = read(log)
    path.unlink()
    writer.write(b"line two")
    assert lines + read(log) == [b"line one", b"line two"]


def test_a_line_without_end_is_read_in_pieces(
    path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "MAX_STRAY_BYTES", 10 * CHUNK_BYTES)
    log = AccessLog(path, (START,))
    writer.write(START.ljust(3 * CHUNK_BYTES, b"x"), b"line next")
    chunks = list(log.chunks())
    assert max(map(len, chunks)) <= CHUNK_BYTES
    assert chunks[-1].split(b"\n")[-1] == b"line next"
    assert log.backlog == 0


def test_any_number_of_zeros_is_skipped(path: Path, writer: Writer) -> None:
    writer.write(b"\0" * (2 * CHUNK_BYTES + 5) + b"line first", b"line second")
    assert read(AccessLog(path, (START,))) == [b"line first", b"line second"]


def test_a_log_that_cannot_get_holes_is_emptied_and_this_is_logged_once(
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
    log = AccessLog(path, (START,))
    lines = []
    for start in range(0, 100_000, 1000):
        writer.write(*numbered(start, start + 1000))
        lines += read(log)
        assert allocated(path) <= 100_000 + 2 * 13_000
    assert lines == numbered(0, 100_000)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "Operation not supported" in warnings[0].getMessage()


FOREIGN = b'203.0.113.9 - - [24/Nov/2026:15:32:00 +0000] "GET / HTTP/1.1" 200 612'


def assert_refused(log: AccessLog, path: Path) -> None:
    """The log is refused, and its file does not change, at each reading."""
    content, allocation = path.read_bytes(), allocated(path)
    for _ in range(3):
        with pytest.raises(ForeignLogError, match=f"{path} is not an access metrics log"):
            read(log)
        log.release()
    assert (path.read_bytes(), allocated(path)) == (content, allocation)


def test_another_programs_log_is_refused_and_not_changed(path: Path, writer: Writer) -> None:
    writer.write(*[FOREIGN] * 10_000)
    assert_refused(AccessLog(path, (START,)), path)


def test_another_programs_log_is_refused_even_if_lines_of_ours_follow(
    path: Path, writer: Writer
) -> None:
    writer.write(FOREIGN, *numbered(0, 100))
    assert_refused(AccessLog(path, (START,)), path)


def test_another_programs_log_is_refused_as_soon_as_its_first_line_is_whole(
    path: Path, writer: Writer
) -> None:
    log = AccessLog(path, (START,))
    assert read(log) == []
    writer.write(FOREIGN[:30], end=b"")
    assert read(log) == []
    writer.write(FOREIGN[30:])
    assert_refused(log, path)


def test_another_programs_lines_behind_a_hole_are_refused(path: Path, writer: Writer) -> None:
    writer.write(*numbered(0, 1000))
    read(AccessLog(path, (START,)))
    writer.write(FOREIGN)
    assert_refused(AccessLog(path, (START,)), path)


def test_another_programs_log_at_the_path_is_refused_until_the_log_is_ours_again(
    path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "SECONDS_OF_GRACE_FOR_REPLACED", 0.0)
    log = AccessLog(path, (START,))
    writer.write(b"line one")
    lines = read(log)
    path.rename(path.with_suffix(".1"))
    writer.write(b"line two")
    Writer(path).write(FOREIGN)
    lines += read(log)
    assert lines == [b"line one", b"line two"]
    assert_refused(log, path)
    path.rename(path.with_suffix(".2"))
    writer.reopen()
    writer.write(b"line three")

    def read_on() -> bool:
        with contextlib.suppress(ForeignLogError):
            lines.extend(read(log))
        return len(lines) == 3

    wait_until(read_on, 5, "the new file to be read")
    assert lines[-1] == b"line three"


def test_a_stray_line_does_not_stop_the_reader_but_many_do(path: Path, writer: Writer) -> None:
    log = AccessLog(path, (START,))
    writer.write(b"line one")
    read(log)
    writer.write(b"stray")
    writer.write(b"line two")
    assert read(log) == [b"stray", b"line two"]

    stray = 0
    with contextlib.suppress(ForeignLogError):
        while stray < 2 * access_log.MAX_STRAY_BYTES:
            writer.write(FOREIGN)
            stray += len(b"".join(read(log)))
    assert stray <= access_log.MAX_STRAY_BYTES
    assert_refused(log, path)
    assert_refused(AccessLog(path, (START,), log.position), path)
