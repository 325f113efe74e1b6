"""Reads what nginx appends to a log file, and gives the file's memory back behind itself.

nginx appends (O_APPEND), so offsets only grow; what has been read is turned into a hole, which
takes no memory. No rotation, no signal to nginx, no moment in which a line could be lost.
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

# On a file system without holes the file is emptied once it has been read to an end beyond this.
# A line that nginx writes between the last look and the emptying, microseconds later, is lost.
MAX_BYTES_WITHOUT_HOLES: Final = 16 << 20

# A renamed log is read on for so long, until every nginx worker has reopened the new one.
SECONDS_OF_GRACE_FOR_REPLACED: Final = 2.0

_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02
_NOT_OPEN: Final = -1

logger = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Position(NamedTuple):
    """The first byte not read yet, and the file it is in."""

    device: int
    inode: int
    offset: int


class AccessLog:
    """A log file, read from a position on.

    Nothing is opened yet: the file may appear later, or be another one by then.

    Args:
        path: the file nginx writes.
        position: where to go on; without one, or where its file is gone, reading starts at the
            first byte that is not in a hole.
    """

    def __init__(self, path: Path, position: Position | None = None) -> None:
        self.position = position or Position(0, 0, 0)
        self._path = path
        self._fd = _NOT_OPEN
        self._makes_holes = True
        self._replaced_at: float | None = None

    @property
    def backlog(self) -> int:
        """Bytes that are written and not read yet."""
        if self._fd == _NOT_OPEN:
            return 0
        start = self._next_data()
        return 0 if start is None else os.fstat(self._fd).st_size - start

    def chunks(self) -> Iterator[bytes]:
        """Yields whole lines, the last of each chunk without its newline, up to the present end.

        `position` is past a chunk when that is yielded. A line without its newline waits.

        Raises:
            OSError: the file is there and can't be read and written.
        """
        if self._fd == _NOT_OPEN and not self._open():
            return
        # Looked up before reading: after the grace nobody adds to a replaced file.
        finished = self._is_replaced()
        yield from self._read()
        if finished:
            self.close()

    def release(self) -> None:
        """Gives back the memory of everything before the position."""
        if self._fd == _NOT_OPEN or not self.position.offset:
            return
        if self._makes_holes:
            mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
            # From the very start: a page is given back only by a hole that covers all of it.
            if _libc.fallocate(self._fd, mode, 0, self.position.offset) == 0:
                return
            self._makes_holes = False
            logger.warning(
                "no holes in %s (%s): it will be emptied every %d bytes, which can lose a line",
                self._path,
                os.strerror(ctypes.get_errno()),
                MAX_BYTES_WITHOUT_HOLES,
            )
        if self.position.offset >= MAX_BYTES_WITHOUT_HOLES and not self.backlog:
            os.ftruncate(self._fd, 0)
            self.position = self.position._replace(offset=0)

    def close(self) -> None:
        """Closes the file; the next `chunks` opens what is at the path then."""
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
            # A hole is made of whole pages: before the first byte there may be zeroes.
            text = data.lstrip(b"\0")
            start += len(data) - len(text)
            end = text.rfind(b"\n")
            if end < 0 and len(text) == CHUNK_BYTES:
                end = CHUNK_BYTES - 1  # no line of nginx's is so long: given out as malformed
            self.position = self.position._replace(offset=start + end + 1)
            if end >= 0:
                yield text[:end]
            elif len(text) == len(data):
                return

    def _next_data(self) -> int | None:
        """Where the next byte that is not in a hole is; None where only a hole follows."""
        try:
            return os.lseek(self._fd, self.position.offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
