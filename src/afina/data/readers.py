"""A file or a folder in, examples out: what kind of file it is, found by its content, and one lazy walk through its rows.

`read(path)` never fails because of what stands in the file: that comes out of the walk as faults.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from afina.core.messages import N_, Message, say
from afina.data.blocks import numbered, sha_of
from afina.data.containers import Container, find_container
from afina.data.conversations import judge
from afina.data.entries import Entry, unpack
from afina.data.examples import Example, Format
from afina.data.faults import Fault, Unreadable, in_file, moved, shorten
from afina.data.folders import data_files
from afina.data.formats import FORMS, Columns, Mapping, columns_of, convert, guess, guess_partly, names_of, unknown
from afina.data.json_rows import Record, Records, read_json, read_json_lines
from afina.data.tables import Dialect, find_dialect, read_arrow, read_csv
from afina.data.text_pairs import read_pairs, read_plain
from afina.data.textfile import HEAD, TextFile, look

PEEK = 200
"""Rows looked at to find the format."""


@dataclass(frozen=True)
class Source:
    """A file that has been looked at. Iterating reads it from its beginning, each time anew, in bounded memory.

    `format` is None when it cannot be told; then the walk gives the reason and no example. An example with warnings comes
    behind its faults; a row with an error gives its faults only.
    """

    path: Path
    format: Format | None
    container: Container | None
    file: TextFile | None
    dialect: Dialect = field(default_factory=Dialect)
    columns: Columns | None = None
    fault: Fault | None = None
    mapping: Mapping | None = None

    def __iter__(self) -> Iterator[Example | Fault]:
        yield from usable(self.entries())

    def entries(self) -> Iterator[Entry]:
        """Every row whether or not it can be used, and the findings on the file as a whole where they are made."""
        if self.fault is not None:
            yield Entry(None, faults=[self.fault])
            return
        try:
            yield from self._entries()
        except Unreadable as end:
            yield Entry(end.fault.row, end.fault.line, faults=[end.fault])

    def _entries(self) -> Iterator[Entry]:
        if self.container == "version":
            yield from _version(self.path)
        elif self.file is not None and self.container in ("pairs", "plain"):
            for item in read_pairs(self.file) if self.container == "pairs" else read_plain(self.file):
                if isinstance(item, Fault):
                    yield Entry(item.row, item.line, faults=[item])
                else:
                    yield Entry(item.row, item.line, item, faults=judge(item))
        elif self.format is not None:
            for record in self.records():
                if isinstance(record, Fault):
                    yield Entry(record.row, record.line, faults=[record])
                    continue
                example, faults = convert(record, self.format, self.columns, self.mapping)
                yield Entry(record.row, record.line, example, record.value if example is None else None, faults)
        else:
            for fault in self._unknown():
                yield Entry(fault.row, fault.line, faults=[fault])

    def _unknown(self) -> Iterator[Fault]:
        """What is wrong with single rows, and that no row has a form that is known."""
        names: list[str] = []
        some = False
        for record in self.records():
            if isinstance(record, Fault):
                yield record
            else:
                some = True
                names = names or _names(record)
        if some:
            yield unknown(names)

    def records(self) -> Records:
        """The raw rows, before they are taken as a format."""
        if self.container in ("parquet", "arrow", "arrow_stream"):
            return read_arrow(self.path, self.container)
        if self.file is None:
            return iter(())
        if self.container == "csv":
            return read_csv(self.file, self.dialect)
        return read_json_lines(self.file) if self.container == "jsonl" else read_json(self.file)


@dataclass(frozen=True)
class Folder:
    """The files of a folder as one dataset, in the order of their names; rows count through all of them.

    `format` is that of the first file that has one; a file of another format is named and left out.
    """

    path: Path
    sources: tuple[Source, ...]

    @property
    def format(self) -> Format | None:
        """The format of all files."""
        return next((source.format for source in self.sources if source.format is not None), None)

    def __iter__(self) -> Iterator[Example | Fault]:
        yield from usable(self.entries())

    def entries(self) -> Iterator[Entry]:
        """Every row of every file, as `Source.entries`."""
        if not self.sources:
            yield Entry(None, faults=[Fault("empty_file", say(N_("There is no file with examples in the folder.")))])
        rows = 0
        for source in self.sources:
            name = source.path.relative_to(self.path).as_posix()
            if source.format is not None and source.format != self.format:
                yield Entry(None, faults=[in_file(self._mixed(source.format), name)])
                continue
            last = 0
            for entry in source.entries():
                last = max(last, entry.row or 0)
                yield _further(entry, rows, name)
            rows += last

    def _mixed(self, other: Format) -> Fault:
        first = next(source for source in self.sources if source.format is not None)
        message = say(
            N_("the rows of this file are {other}, but those of {first} are {form}."),
            other=Message(FORMS[other]),
            first=first.path.name,
            form=Message(FORMS[str(first.format)]),
        )
        return Fault("mixed_formats", message, value=other)


def _further(entry: Entry, rows: int, name: str) -> Entry:
    """A row of a file of a folder, numbered on."""
    row = None if entry.row is None else entry.row + rows
    example = entry.example if entry.example is None or not rows else replace(entry.example, row=row or 0)
    return Entry(row, entry.line, example, entry.raw, [in_file(moved(fault, rows), name) for fault in entry.faults])


def usable(entries: Iterator[Entry]) -> Iterator[Example | Fault]:
    """The examples that a model can learn from, each behind its warnings; a row with an error gives its faults only."""
    for entry in entries:
        yield from entry.faults
        if entry.usable and entry.example is not None:
            yield entry.example


def _version(path: Path) -> Iterator[Entry]:
    """The rows of a version in the store."""
    try:
        for row, line in numbered(path):
            yield unpack(line, row)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        message = say(N_("The file cannot be read to its end: {reason}."), reason=shorten(str(error)))
        raise Unreadable(Fault("bad_archive", message)) from None


def _version_format(path: Path) -> Format | None:
    """What the first row of a version is, that can be told."""
    for entry in Source(path, None, "version", None).entries():
        if entry.example is not None:
            if entry.example.text is not None:
                return "text"
            return "messages" if entry.example.chosen is None else "preference"
    return None


def _names(record: Record) -> list[str]:
    return [str(name) for name in record.value] if isinstance(record.value, dict) else []


def read(path: Path, mapping: Mapping | None = None) -> Source | Folder:
    """Look at a file, or the files of a folder, and tell the format.

    `mapping` says what the columns of a table mean whose names do not (`mapping.py` guesses, asks for and remembers it); for
    files that are no tables it changes nothing. A file of the store is a version of a dataset: its rows have been read before.
    Raises AfinaError only when the path cannot be opened at all.
    """
    if sha_of(path) and path.is_file():
        return Source(path, _version_format(path), "version", None)
    if path.is_dir():
        return Folder(path, tuple(read_file(file, mapping) for file in data_files(path)))
    return read_file(path, mapping)


def read_file(path: Path, mapping: Mapping | None = None) -> Source:
    """The same for one file."""
    try:
        file = look(path)
    except Unreadable as end:
        return Source(path, None, None, None, fault=end.fault)
    container, fault = find_container(file)
    if fault is not None:
        return Source(path, None, container, file, fault=fault)
    if container in ("pairs", "plain"):
        return Source(path, container, container, file)
    dialect = _dialect(file) if container == "csv" else Dialect()
    raw = Source(path, None, container, file, dialect)
    if mapping is not None and _fits(raw, mapping):
        return replace(raw, format=mapping.form, mapping=mapping)
    form, columns = _format(raw)
    return replace(raw, format=form, columns=columns)


def _fits(source: Source, mapping: Mapping) -> bool:
    """Whether one of the first rows has the columns that must not be missing."""
    needed = {name for name in (mapping.prompt, mapping.answer, mapping.text) if name is not None}
    return any(needed <= names_of(row).keys() for row in first_rows(source))


def first_rows(source: Source, count: int = PEEK) -> list[dict[str, object]]:
    """The fields of the first rows that have any, as they stand in the file."""
    rows: list[dict[str, object]] = []
    try:
        for record in islice(source.records(), count):
            if isinstance(record, Record) and isinstance(record.value, dict):
                rows.append(record.value)
    except Unreadable:
        pass  # the walk will say so
    return rows


def _dialect(file: TextFile) -> Dialect:
    return find_dialect(file.head_text(), complete=len(file.head) < HEAD)


def _format(source: Source) -> tuple[Format | None, Columns | None]:
    """The format, and a table's columns, of the first row that shows one completely; else what the rows seem to be."""
    rows: list[dict[str, object]] = []
    try:
        for record in islice(source.records(), PEEK):
            if isinstance(record, Record) and isinstance(record.value, dict):
                rows.append(names_of(record.value))
                if form := guess(rows[-1]):
                    return form, columns_of(rows[-1])
    except Unreadable:
        pass  # the walk will say so
    return next((form for row in rows if (form := guess_partly(row))), None), None
