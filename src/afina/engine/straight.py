"""Writing a large file past the system's cache, where the system can.

The cache takes a copy of every page, which is work for a processor that trains, and drives out what others use. What is written straight
is fetched from memory by the disk itself, in whole blocks. Where a file cannot be written so, it goes through the cache as ever.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from types import TracebackType

import numpy as np

AT_ONCE = 4 << 20
"""Bytes handed to the disk at a time: whole blocks of any disk."""
UNABLE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems say that write by the cache only."""
STRAIGHT: int = getattr(os, "O_DIRECT", 0)


class Straight:
    """A new file, written from its beginning to its end. Not on disk before `core.files.sync_file`.

    Raises OSError, also later, as files do.
    """

    def __init__(self, path: Path) -> None:
        self._block = _pages()
        self._filled = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        self._straight = bool(STRAIGHT) and self._block is not None
        try:
            self._file = os.open(path, flags | (STRAIGHT if self._straight else 0), 0o666)
        except OSError as error:
            if not (self._straight and error.errno in UNABLE):
                raise
            self._straight = False
            self._file = os.open(path, flags, 0o666)

    def __enter__(self) -> Straight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.by_cache()
        finally:
            os.close(self._file)

    def write(self, data: memoryview | bytes) -> None:
        """Append `data`, bytes."""
        left = memoryview(data)
        while self._straight and self._block is not None and len(left):
            count = min(len(left), AT_ONCE - self._filled)
            self._block[self._filled : self._filled + count] = np.frombuffer(left[:count], np.uint8)
            self._filled += count
            left = left[count:]
            if self._filled == AT_ONCE:
                self._empty()
        self._hand_over(left)

    def by_cache(self) -> None:
        """Leave what follows to the system's cache, which takes it faster than a slow disk would."""
        if self._straight:
            self._turn()
            self._empty()

    def _empty(self) -> None:
        if self._block is not None:
            self._hand_over(self._block.data[: self._filled])
            self._filled = 0

    def _hand_over(self, data: memoryview) -> None:
        while len(data):
            try:
                data = data[os.write(self._file, data) :]
            except OSError as error:
                if not (self._straight and error.errno in UNABLE):
                    raise
                self._turn()

    def _turn(self) -> None:
        import fcntl  # where files can be written straight, it is there

        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~STRAIGHT)
        self._straight = False


def _pages() -> np.ndarray[tuple[int], np.dtype[np.uint8]] | None:
    """Memory that begins with a page, as disks ask for; None where there is none."""
    try:
        return np.frombuffer(mmap.mmap(-1, AT_ONCE), np.uint8) if STRAIGHT else None
    except OSError:
        return None
