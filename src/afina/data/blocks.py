"""Lines of JSON in compressed blocks, so that a few rows in the middle can be read without the rest.

A file of blocks is an ordinary gzip file of several members; each holds up to BLOCK_ROWS rows. Where each begins is kept
beside (`.state/rows`), and found again by reading when it is lost. Knows nothing of what a row means, but that some lines
are no rows.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import re
import uuid
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO

from afina.core.errors import AfinaError, Problem
from afina.core.files import read_json, sync_folder, write_json
from afina.core.messages import N_, say
from afina.core.paths import STORE, Home
from afina.data.entries import is_whole
from afina.data.watch import Meter

BLOCK_ROWS = 64
BLOCK_BYTES = 256 * 1024
LEVEL = 4
_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""A gzip member without name and time, from no system in particular: the same rows give the same bytes everywhere."""
_NAME = re.compile(r"([0-9a-f]{64})\.jsonl\.gz")


@dataclass
class Index:
    """Where the blocks of a file begin (bytes) and with which row (from 1), and how many rows there are."""

    rows: int = 0
    offsets: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)


def sha_of(path: Path) -> str | None:
    """The version a path in the store stands for; None for any other path."""
    match = _NAME.fullmatch(path.name)
    return match[1] if match and path.parent.name == STORE else None


def place(home: Home, sha256: str) -> Path:
    """Where the rows of a version lie."""
    return home.store / f"{sha256}.jsonl.gz"


def home_of(path: Path) -> Home:
    """The home that a file in a store belongs to."""
    return Home(path.parent.parent)


class Writer:
    """Rows being written into the store of `home`. `finish` gives the version's name; without it nothing stays."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._digest = hashlib.sha256()
        self._index = Index()
        self._lines: list[bytes] = []
        self._size = self._in_block = self._at = 0
        home.store.mkdir(parents=True, exist_ok=True)
        self._draft = home.store / f".{uuid.uuid4().hex}.part"
        self._file: IO[bytes] = self._draft.open("wb")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as full:  # closing writes what was still held back
            error = error or full
        self._draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = say(N_("Free some space, for example by deleting old runs."))
            raise AfinaError(Problem("no_disk_space", say(N_("The disk is full.")), remedy), "failed") from None

    @property
    def rows(self) -> int:
        """How many rows have been added."""
        return self._index.rows

    def add(self, line: bytes, counts: bool = True) -> None:
        """Add a line; `counts`: whether it is a row."""
        if not self._lines:
            self._index.offsets.append(self._at)
            self._index.first.append(self._index.rows + 1)
        self._lines.append(line)
        self._size += len(line) + 1
        self._in_block += counts
        self._index.rows += counts
        if self._in_block >= BLOCK_ROWS or self._size >= BLOCK_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._lines:
            return
        data = b"\n".join(self._lines) + b"\n"
        self._digest.update(data)
        packer = zlib.compressobj(LEVEL, wbits=-15)
        block = packer.compress(data) + packer.flush()
        ends = zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
        self._at += self._file.write(_HEAD + block + ends)
        self._lines, self._size, self._in_block = [], 0, 0

    def finish(self) -> str:
        """Put the rows into the store, once for the same content; returns the SHA-256 that names them."""
        self._flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sha256 = self._digest.hexdigest()
        write_json(_index_place(self._home, sha256), vars(self._index))
        self._draft.replace(place(self._home, sha256))
        sync_folder(self._home.store)
        _known.cache_clear()
        return sha256


def lines(path: Path) -> Iterator[bytes]:
    """Every line of a file of blocks, without its end. Raises OSError, EOFError, zlib.error for a damaged one."""
    with path.open("rb") as raw, gzip.open(raw, "rb") as file:
        meter = Meter(raw)
        for number, line in enumerate(file):
            if not number % BLOCK_ROWS:
                meter.look()
            yield line.rstrip(b"\n")


def numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number of the row, line); a line that is no row comes with the number of the row that follows."""
    row = 1
    for line in lines(path):
        yield row, line
        row += not is_whole(line)


def index_of(path: Path) -> Index:
    """The index of a version's file. Raises OSError, zlib.error."""
    return _known(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _known(path: Path, _changed: int) -> Index:
    kept = _index_place(home_of(path), sha_of(path) or path.stem)
    try:
        found = read_json(kept)
        return Index(int(found["rows"]), list(found["offsets"]), list(found["first"]))
    except (OSError, ValueError, KeyError, TypeError):
        made = _scan(path)
    write_json(kept, vars(made))
    return made


def _index_place(home: Home, sha256: str) -> Path:
    return home.state / "rows" / f"{sha256}.json"


def _scan(path: Path) -> Index:
    """Find the blocks by reading the whole file once."""
    made, at = Index(), 0
    with path.open("rb") as file:
        rest = b""
        while rest or (rest := file.read(1 << 20)):
            made.offsets.append(at)
            made.first.append(made.rows + 1)
            text, used, rest = _member(file, rest)
            at += used
            made.rows += sum(not is_whole(line) for line in text.splitlines())
    return made


def _member(file: IO[bytes], rest: bytes) -> tuple[bytes, int, bytes]:
    """(text, bytes it took, what was read beyond) of the gzip member at the beginning of `rest` and of `file` behind it."""
    unpacker = zlib.decompressobj(wbits=31)
    parts, used = [], 0
    while not unpacker.eof:
        if not rest and not (rest := file.read(1 << 20)):
            raise zlib.error("the file ends in the middle of a block")
        parts.append(unpacker.decompress(rest))
        used += len(rest)
        rest = b""
    return b"".join(parts), used - len(unpacker.unused_data), unpacker.unused_data


def rows_at(path: Path, wanted: list[int]) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the rows with these numbers, which must be in order. Raises OSError, zlib.error."""
    index = index_of(path)
    block, held = -1, []
    with path.open("rb") as file:
        for row in wanted:
            if not 1 <= row <= index.rows:
                continue
            at = bisect_right(index.first, row) - 1
            if at != block:
                file.seek(index.offsets[at])
                text, _, _ = _member(file, b"")
                held = [line for line in text.splitlines() if not is_whole(line)]
                block = at
            yield row, held[row - index.first[at]]
