"""Tokens as plain arrays: made in chunks, kept on disk by what they depend on, mapped into memory when read.

A table is a folder of columns, raw little-endian numbers, and a manifest written last with the size and SHA-256 of each;
whatever does not match it is made again. Folders appear under their name whole or not at all, so two processes may write
the same one. Nothing is ever unpickled. Knows nothing of models, templates or runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afina.core.files import read_json, sync_folder, write_json

FORMAT = 1
"""Raised by one when the columns change."""
LIMIT = 4 << 30
"""Bytes of all tables together; the least recently used are deleted beyond."""
ABANDONED = 24 * 3600.0
"""Seconds after which a folder that was never finished belongs to nobody."""

COLUMNS: dict[str, np.dtype[Any]] = {
    "ids": np.dtype("<i4"),
    "mask": np.dtype("?"),
    "ends": np.dtype("<i8"),
    "rows": np.dtype("<i8"),
    "cut": np.dtype("<i4"),
    "cut_answer": np.dtype("<i4"),
    "learned": np.dtype("<i4"),
    "keys": np.dtype("V16"),
}

Chunk = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Table:
    """The tokens of a dataset.

    ids, mask (tokens): of all items end to end, the mask True where a token is learned. Of every item: ends, where its
    tokens end; rows, the row it was made of (from 0; a document gives several items); cut, cut_answer, learned: counts of
    tokens. keys (rows): 16 bytes that are equal for rows with the same content.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    ends: NDArray[np.int64]
    rows: NDArray[np.int64]
    cut: NDArray[np.int32]
    cut_answer: NDArray[np.int32]
    learned: NDArray[np.int32]
    keys: NDArray[np.void]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every item."""
        return np.diff(self.ends, prepend=0)

    def slice(self, item: int) -> slice:
        """Where the tokens of an item lie."""
        return slice(int(self.ends[item - 1]) if item else 0, int(self.ends[item]))


def in_memory(chunks: Iterable[Chunk]) -> Table:
    """The table that `chunks` make, kept nowhere else."""
    made = list(chunks)
    return Table(
        **{
            name: np.concatenate([np.empty(0, kind), *(chunk[name] for chunk in made)])
            for name, kind in COLUMNS.items()
        }
    )


class Cache:
    """Tables by name in a folder, at most `limit` bytes of them. What cannot be kept there is made in memory."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self._folder = folder
        self._limit = limit

    def table(self, name: str, make: Callable[[], Iterator[Chunk]]) -> Table:
        """The table called `name`; made where it is not there, or not as it was written."""
        place = self._folder / name
        found = _read(place)
        if found is None:
            try:
                found = self._written(place, make)
            except OSError:  # no room, no right to write: it works without
                return in_memory(make())
        with suppress(OSError):
            now = time.time_ns()  # finer than the file system's own clock, which ticks every few milliseconds
            os.utime(place / "manifest.json", ns=(now, now))
            self._tidy(place)
        return found

    def _written(self, place: Path, make: Callable[[], Iterator[Chunk]]) -> Table:
        part = place.with_name(f".{place.name}.{uuid.uuid4().hex}.part")
        part.mkdir(parents=True)
        try:
            _write(part, make())
            if place.exists():  # damaged, or another process was quicker
                _remove(place)
            with suppress(OSError):
                part.rename(place)
                sync_folder(self._folder)
            found = _read(place) or _read(part)
            if found is None:
                raise OSError(f"{place} cannot be read back")
            return found
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _tidy(self, used: Path) -> None:
        """Delete what was never finished, and the least recently used tables above the limit, but not `used`."""
        tables = []
        for folder in self._folder.iterdir():
            with suppress(OSError):  # another process tidies too
                if folder.name.startswith("."):
                    if time.time() - folder.stat().st_mtime > ABANDONED:
                        shutil.rmtree(folder, ignore_errors=True)
                elif folder.is_dir():
                    size = sum(file.stat().st_size for file in folder.iterdir())
                    tables.append(((folder / "manifest.json").stat().st_mtime_ns, size, folder))
        total = sum(size for _, size, _ in tables)
        for _, size, folder in sorted(tables):
            if total <= self._limit:
                break
            if folder != used:
                _remove(folder)
                total -= size


def _write(folder: Path, chunks: Iterator[Chunk]) -> None:
    digests = {name: hashlib.sha256() for name in COLUMNS}
    sizes = dict.fromkeys(COLUMNS, 0)
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in COLUMNS}
        for chunk in chunks:
            for name, kind in COLUMNS.items():
                data = np.ascontiguousarray(chunk[name], kind).tobytes()
                files[name].write(data)
                digests[name].update(data)
                sizes[name] += len(data)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    columns = {name: {"bytes": sizes[name], "sha256": digests[name].hexdigest()} for name in COLUMNS}
    write_json(folder / "manifest.json", {"format": FORMAT, "columns": columns})


def _read(folder: Path) -> Table | None:
    """The table in `folder`, None where there is none or it is not as it was written."""
    columns: dict[str, NDArray[Any]] = {}
    try:
        manifest = read_json(folder / "manifest.json")
        if manifest["format"] != FORMAT:
            return None
        for name, kind in COLUMNS.items():
            path, stated = folder / f"{name}.bin", manifest["columns"][name]
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != stated["sha256"]:
                    return None
            # copy on write, as PyTorch wants tensors that could be written to; an empty file cannot be mapped
            columns[name] = np.memmap(path, kind, mode="c") if stated["bytes"] else np.empty(0, kind)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Table(**{each.name: columns[each.name] for each in fields(Table)})


def _remove(folder: Path) -> None:
    """Take a table out of the way at once, then delete it."""
    gone = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    with suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
