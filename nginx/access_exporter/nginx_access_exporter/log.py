"""Reads what nginx appends to a log file, and frees the part of the file that was read.

nginx appends (O_APPEND), so offsets only grow. What was read is turned into a hole, which takes no
memory. This needs no rotation and no signal to nginx, and no line can be lost between two files.
"""

import ctypes
import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

CHUNK_BYTES: Final = 1 << 18

# If the file system cannot punch holes, the exporter empties the file after it has read it to its
# end, once the file is larger than this. A line that nginx writes in between is lost.
MAX_BYTES_WITHOUT_HOLES: Final = 16 << 20

# Chunks that begin with a line of another format are read up to this much in all: one stray line in
# our log must not stop the metrics. Beyond that, the file belongs to another program.
MAX_STRAY_BYTES: Final = CHUNK_BYTES

# A renamed log is still read for this long, until every nginx worker has reopened the new one.
SECONDS_OF_GRACE_FOR_REPLACED: Final = 2.0

_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02
_NOT_OPEN: Final = -1

logger = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class ForeignLogError(Exception):
    """The file is not an access metrics log; nothing in it was changed."""


class Position(NamedTuple):
    """The first byte not read yet, and the file it is in."""

    device: int
    inode: int
    offset: int


class AccessLog:
    """A log file, read from a position on.

    The file is opened when it is first read: it may not exist yet.

    Args:
        path: the file nginx writes.
        line_starts: what a line of the log can begin with.
        position: where to go on. Without it, or where its file is gone, reading starts at the first
            byte that is not in a hole.
    """

    def __init__(
        self, path: Path, line_starts: tuple[bytes, ...], position: Position | None = None
    ) -> None:
        self.position = position or Position(0, 0, 0)
        self._path = path
        self._line_starts = line_starts
        self._stray_bytes_left: int | None = None  # as long as the first line is unknown
        self._fd = _NOT_OPEN
        self._makes_holes = True
        self._replaced_at: float | None = None

    @property
    def backlog(self) -> int:
        """Bytes that were written and not read yet."""
        if self._fd == _NOT_OPEN:
            return 0
        start = self._next_data()
        return 0 if start is None else os.fstat(self._fd).st_size - start

    def chunks(self) -> Iterator[bytes]:
        """Yields whole lines up to the end of the file; a chunk's last line has no newline.

        `position` is past a chunk when that chunk is yielded. A line without its newline waits.

        Raises:
            ForeignLogError: the next lines do not belong to the log; `position` is before them.
            OSError: the file exists and can't be read and written.
        """
        if self._fd == _NOT_OPEN and not self._open():
            return
        # Checked before reading: after the grace period nginx adds nothing to a replaced file.
        finished = self._is_replaced()
        yield from self._read()
        if finished:
            self.close()

    def release(self) -> None:
        """Frees the memory of everything before the position."""
        if self._fd == _NOT_OPEN or not self.position.offset:
            return
        if self._makes_holes:
            mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
            # From the start of the file: only a hole that covers a whole page frees it.
            if _libc.fallocate(self._fd, mode, 0, self.position.offset) == 0:
                return
            self._makes_holes = False
            logger.warning(
                "can't punch holes in %s (%s): emptying it every %d bytes instead, which can lose "
                "a line",
                self._path,
                os.strerror(ctypes.get_errno()),
                MAX_BYTES_WITHOUT_HOLES,
            )
        if self.position.offset >= MAX_BYTES_WITHOUT_HOLES and not self.backlog:
            os.ftruncate(self._fd, 0)
            self.position = self.position._replace(offset=0)

    def close(self) -> None:
        """Closes the file; the next `chunks` opens the file at the path again."""
        if self._fd != _NOT_OPEN:
            os.close(self._fd)
        self._fd = _NOT_OPEN
        self._replaced_at = None

    def _open(self) -> bool:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        stat = os.fstat(self._fd)
        if self.position[:2] != (stat.st_dev, stat.st_ino):
            self.position = Position(stat.st_dev, stat.st_ino, offset=0)
        self._stray_bytes_left = None
        return True

    def _is_replaced(self) -> bool:
        try:
            same = os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except FileNotFoundError:
            same = True  # renamed or deleted: nginx writes to it until it reopens its logs
        if same:
            self._replaced_at = None
            return False
        now = time.monotonic()
        self._replaced_at = self._replaced_at or now
        return now - self._replaced_at >= SECONDS_OF_GRACE_FOR_REPLACED

    def _read(self) -> Iterator[bytes]:
        size = os.fstat(self._fd).st_size
        if size < self.position.offset:
            logger.warning("%s was truncated: reading it from its start", self._path)
            self.position = self.position._replace(offset=0)
        while self.position.offset < size:
            start = self._next_data()
            if start is None:
                return
            data = os.pread(self._fd, CHUNK_BYTES, start)
            # A hole consists of whole pages, so zeros may precede the first byte.
            text = data.lstrip(b"\0")
            start += len(data) - len(text)
            end = text.rfind(b"\n")
            if end < 0 and len(text) == CHUNK_BYTES:
                end = CHUNK_BYTES - 1  # nginx writes no line this long: it will be malformed
            if end >= 0:
                self._check(text[:end])
            self.position = self.position._replace(offset=start + end + 1)
            if end >= 0:
                yield text[:end]
            elif len(text) == len(data):
                return

    def _check(self, chunk: bytes) -> None:
        """Raises ForeignLogError if a chunk belongs to another log."""
        if chunk.startswith(self._line_starts):
            if self._stray_bytes_left is None:
                self._stray_bytes_left = MAX_STRAY_BYTES
            return
        if self._stray_bytes_left is None or len(chunk) > self._stray_bytes_left:
            self.close()  # the path may be another file's next time
            line = chunk.partition(b"\n")[0]
            starts = " or ".join(it.decode().strip() for it in self._line_starts)
            raise ForeignLogError(
                f"{self._path} is not an access metrics log: its next line does not begin with "
                f"{starts}, but is {line[:60]!r}. The exporter erases what it reads, so it does "
                "not read this file. Give it a log of its own (nginx's log_format is in the "
                "README), or move this file away and reopen nginx's logs."
            )
        self._stray_bytes_left -= len(chunk)

    def _next_data(self) -> int | None:
        """Returns the offset of the next byte outside holes, None if only a hole follows."""
        try:
            return os.lseek(self._fd, self.position.offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
