"""Versions of datasets, named by their content, so that a run can be repeated when the file has changed or is gone.

A version is the SHA-256 of the canonical rows, one JSON object a line: the same rows give the same version, whatever the
format they came in. What a person works on may hold rows that cannot be used (see `entries`); what a run is given may not.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.data import blocks
from afina.data.entries import Entry, joined, unpack
from afina.data.examples import Example, Format
from afina.data.faults import Fault
from afina.data.mapping import read_as_remembered

_ENOUGH = 20


@dataclass(frozen=True)
class Version:
    """A frozen dataset: its name by content, the format it came in, its rows, and the copy."""

    sha256: str
    format: Format
    rows: int
    path: Path


def freeze(home: Home, path: Path) -> Version:
    """Copy the rows of `path` into the store, once for the same content.

    Raises AfinaError with the first errors of the file when it has any (`checks.check` gives them all).
    """
    source = read_as_remembered(home, path)
    problems: list[Problem] = []
    with blocks.Writer(home) as writer:
        for item in source:
            if isinstance(item, Example):
                writer.add(item.line_of_json())
            elif item.severity == "error" and len(problems) < _ENOUGH:
                problems.append(_problem(item))
        if not writer.rows and not problems:
            problems.append(Problem("empty_file", say(N_("There is no example in the file."))))
        if problems or source.format is None:
            raise AfinaError(problems)
        sha256 = writer.finish()
    return Version(sha256, source.format, writer.rows, blocks.place(home, sha256))


def keep(home: Home, entries: Iterable[Entry]) -> tuple[str, int]:
    """Put rows into the store whether or not they can be used; returns the version's name and its rows."""
    with blocks.Writer(home) as writer:
        for entry in joined(entries):
            writer.add(entry.pack(), counts=entry.row is not None)
        return writer.finish(), writer.rows


def rewrite(
    home: Home, sha256: str, change: Callable[[Iterator[tuple[int, bytes]]], Iterable[tuple[bytes, bool]]]
) -> tuple[str, int]:
    """Make a version of another: `change` gets (row, line) of it and gives (line, whether it is a row) of the new one.

    Raises AfinaError `not_found`, `damaged`.
    """
    try:
        with blocks.Writer(home) as writer:
            for line, counts in change(blocks.numbered(version_path(home, sha256))):
                writer.add(line, counts)
            return writer.finish(), writer.rows
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(sha256) from error


def entries_at(home: Home, sha256: str, rows: Iterable[int]) -> list[Entry]:
    """The rows with these numbers, which must be in order. Raises AfinaError `not_found`, `damaged`."""
    try:
        return [unpack(line, row) for row, line in blocks.rows_at(version_path(home, sha256), list(rows))]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, IndexError) as error:
        raise _damaged(sha256) from error


def count(home: Home, sha256: str) -> int:
    """How many rows a version has. Raises AfinaError `not_found`, `damaged`."""
    path = version_path(home, sha256)
    try:
        return blocks.index_of(path).rows
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _damaged(sha256) from error


def version_path(home: Home, sha256: str) -> Path:
    """Where a version lies. Raises AfinaError `not_found`."""
    copy = blocks.place(home, sha256)
    if blocks.sha_of(copy) is None:
        message = say(N_("“{sha256}” does not name a version of a dataset."), sha256=sha256[:80])
        raise AfinaError(Problem("not_found", message), "not_found")
    if not copy.is_file():
        message = say(N_("The stored copy {sha256} of a dataset is not there."), sha256=sha256[:12])
        raise AfinaError(Problem("not_found", message, say(N_("Start the run again from the dataset."))), "not_found")
    return copy


def _problem(fault: Fault) -> Problem:
    return Problem(fault.code, fault.message, fault.remedy, fault.field, fault.value)


class Rows:
    """The rows of a frozen dataset, read when they are asked for: all in order, or one by its place (from 0).

    Raises AfinaError `not_found`, and `damaged` where reading shows it.
    """

    def __init__(self, home: Home, sha256: str) -> None:
        self._home = home
        self._sha256 = sha256
        self._count: int | None = None
        version_path(home, sha256)

    def __iter__(self) -> Iterator[Example]:
        return open_version(self._home, self._sha256)

    def __len__(self) -> int:
        if self._count is None:
            self._count = count(self._home, self._sha256)
        return self._count

    def __getitem__(self, place: int, /) -> Example:
        found = entries_at(self._home, self._sha256, [range(len(self))[place] + 1])[0].example
        if found is None:
            raise _damaged(self._sha256)
        return found


def open_version(home: Home, sha256: str) -> Iterator[Example]:
    """The rows of a frozen dataset, numbered from 1. Raises AfinaError `not_found`, and `damaged` where reading shows it."""
    return _rows(version_path(home, sha256), sha256)


def _rows(copy: Path, sha256: str) -> Iterator[Example]:
    digest = hashlib.sha256()
    try:
        for row, line in enumerate(blocks.lines(copy), 1):
            digest.update(line + b"\n")
            yield Example.from_json(orjson.loads(line), row)
    except (OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        raise _damaged(sha256) from error
    if digest.hexdigest() != sha256:
        raise _damaged(sha256)


def _damaged(sha256: str) -> AfinaError:
    message = say(N_("The stored copy {sha256} of a dataset is damaged."), sha256=sha256[:12])
    return AfinaError(Problem("damaged", message, say(N_("Start the run again from the dataset."))), "failed")
