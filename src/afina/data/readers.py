"""A file or a folder in, examples out: what kind of file it is, found by its content, and one lazy walk through its rows.

`read(path)` never fails because of what stands in the file: that comes out of the walk as faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from afina.core.messages import N_, Message, say
from afina.data.containers import Container, find_container
from afina.data.conversations import judge
from afina.data.examples import Example, Format
from afina.data.faults import Fault, Unreadable, in_file, moved
from afina.data.folders import data_files
from afina.data.formats import FORMS, Columns, Mapping, columns_of, examples_of, guess, guess_partly, names_of, unknown
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
        if self.fault is not None:
            yield self.fault
            return
        try:
            yield from self._examples()
        except Unreadable as end:
            yield end.fault

    def _examples(self) -> Iterator[Example | Fault]:
        if self.file is not None and self.container in ("pairs", "plain"):
            for item in read_pairs(self.file) if self.container == "pairs" else read_plain(self.file):
                yield from [item] if isinstance(item, Fault) else _judged(item)
        elif self.format is not None:
            yield from examples_of(self.records(), self.format, self.columns, self.mapping)
        else:
            yield from self._unknown()

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
        if not self.sources:
            yield Fault("empty_file", say(N_("There is no file with examples in the folder.")))
        rows = 0
        for source in self.sources:
            name = source.path.relative_to(self.path).as_posix()
            if source.format is not None and source.format != self.format:
                yield in_file(self._mixed(source.format), name)
                continue
            last = 0
            for item in source:
                last = max(last, item.row or 0)
                yield in_file(moved(item, rows), name) if isinstance(item, Fault) else _further(item, rows)
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


def _further(example: Example, rows: int) -> Example:
    return replace(example, row=example.row + rows) if rows else example


def _judged(example: Example) -> Iterator[Example | Fault]:
    faults = judge(example)
    yield from faults
    if not any(fault.severity == "error" for fault in faults):
        yield example


def _names(record: Record) -> list[str]:
    return [str(name) for name in record.value] if isinstance(record.value, dict) else []


def read(path: Path, mapping: Mapping | None = None) -> Source | Folder:
    """Look at a file, or the files of a folder, and tell the format.

    `mapping` says what the columns of a table mean whose names do not (`mapping.py` guesses, asks for and remembers it); for
    files that are no tables it changes nothing. Raises AfinaError only when the path cannot be opened at all.
    """
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
