"""A file in, examples out: what kind of file it is, found by its content, and one lazy walk through its rows.

`read(path)` never fails because of what stands in the file: that comes out of the walk as faults.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import orjson

from afina.core.messages import N_, say
from afina.data.blocks import numbered, sha_of
from afina.data.conversations import judge
from afina.data.entries import Entry, unpack
from afina.data.examples import Example, Format
from afina.data.faults import Fault, Unreadable, shorten
from afina.data.formats import Columns, columns_of, convert, guess, guess_partly, names_of, unknown
from afina.data.json_rows import Record, Records, read_json, read_json_lines
from afina.data.tables import Dialect, find_dialect, header, read_arrow, read_csv
from afina.data.text_pairs import looks_labelled, read_pairs, read_plain
from afina.data.textfile import HEAD, TextFile, look

Container = Literal["json", "jsonl", "csv", "parquet", "arrow", "arrow_stream", "pairs", "plain", "version"]
PEEK = 200
"""Rows looked at to find the format."""

_JSON_START = re.compile(r"\[\s*(?:[\[{\]\"]|$)|\{\s*(?:[\"'}]|$)")
_MAGIC: list[tuple[bytes, str]] = [
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "rar"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
]


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

    def __iter__(self) -> Iterator[Example | Fault]:
        for entry in self.entries():
            yield from entry.faults
            if entry.usable and entry.example is not None:
                yield entry.example

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
            return
        if self.file is not None and self.container in ("pairs", "plain"):
            for item in read_pairs(self.file) if self.container == "pairs" else read_plain(self.file):
                if isinstance(item, Fault):
                    yield Entry(item.row, item.line, faults=[item])
                else:
                    yield Entry(item.row, item.line, item, faults=judge(item))
            return
        unknown_names: list[str] = []
        good = 0
        for record in self.records():
            if isinstance(record, Fault):
                yield Entry(record.row, record.line, faults=[record])
            elif self.format is None:
                good += 1
                unknown_names = unknown_names or _names(record)
            else:
                example, faults = convert(record, self.format, self.columns)
                yield Entry(record.row, record.line, example, record.value if example is None else None, faults)
        if good and self.format is None:
            yield Entry(None, faults=[unknown(unknown_names)])

    def records(self) -> Records:
        """The raw rows, before they are taken as a format."""
        if self.container in ("parquet", "arrow", "arrow_stream"):
            return read_arrow(self.path, self.container)
        if self.file is None:
            return iter(())
        if self.container == "csv":
            return read_csv(self.file, self.dialect)
        return read_json_lines(self.file) if self.container == "jsonl" else read_json(self.file)


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


def read(path: Path) -> Source:
    """Look at the file and tell its format. Raises AfinaError only when it cannot be opened at all.

    A file of the store is a version of a dataset: its rows have been read before.
    """
    if sha_of(path) and path.is_file():
        return Source(path, _version_format(path), "version", None)
    try:
        file = look(path)
    except Unreadable as end:
        return Source(path, None, None, None, fault=end.fault)
    container, fault = _container(file)
    if fault is not None:
        return Source(path, None, container, file, fault=fault)
    if container in ("pairs", "plain"):
        return Source(path, container, container, file)
    dialect = _dialect(file) if container == "csv" else Dialect()
    form, columns = _format(Source(path, None, container, file, dialect))
    return Source(path, form, container, file, dialect, columns)


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


def _container(file: TextFile) -> tuple[Container | None, Fault | None]:
    """What kind of file it is; a fault when it is none that can be read."""
    head = file.head
    if file.compression is None:
        if head.startswith(b"PAR1"):
            return "parquet", None
        if head.startswith(b"ARROW1"):
            return "arrow", None
        if head.startswith(b"\xff\xff\xff\xff") and len(head) > 8:
            return "arrow_stream", None
    packed = next((name for magic, name in _MAGIC if head.startswith(magic)), None)
    if packed:
        return None, Fault("archive", say(N_("This is an archive or office file ({kind}), not text."), kind=packed))
    if file.encoding == "utf-8" and b"\0" in head:
        return None, Fault("binary", say(N_("This is not a text file: it holds bytes that no text holds.")))
    text = file.head_text()
    if not text.strip("\ufeff \t\r\n\0"):
        return None, Fault("empty_file", say(N_("There is nothing in the file.")))
    if text.count("\ufffd") + sum(0xDC00 <= ord(c) <= 0xDCFF for c in text) > len(text) // 5:
        return None, Fault("binary", say(N_("This is not a text file: it holds bytes that no text holds.")))
    return _text_container(text, _hint(file.path)), None


def _hint(path: Path) -> str:
    """The extension in lower case, without that of the compression."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return name.rpartition(".")[2] if "." in name else ""


def _text_container(text: str, hint: str) -> Container:
    start = text.lstrip("\ufeff \t\r\n")
    if _JSON_START.match(start):
        return _json_kind(start, hint in ("jsonl", "ndjson"))
    if hint in ("jsonl", "ndjson") or (hint == "json" and not looks_labelled(text)):
        return "jsonl" if hint != "json" or any(_is_object(line) for line in text.split("\n")[:50]) else "json"
    if hint in ("csv", "tsv") or _is_table(text):
        return "csv"
    return "pairs" if looks_labelled(text) else "plain"


def _is_table(text: str) -> bool:
    """Whether the first line names the columns of a format. Prose that only happens to hold a comma does not."""
    names = header(text, find_dialect(text, complete=False))
    return (
        len(names) > 1 and all(len(name) < 60 for name in names) and guess(names_of(dict.fromkeys(names))) is not None
    )


def _json_kind(text: str, lines_expected: bool) -> Container:
    """One value a line, or a document. `text` begins with its bracket."""
    if text[0] == "[":
        return "json"
    lines = [line for line in text.split("\n")[:50] if line.strip()]
    begun = [line for line in lines if line.startswith("{") and line.strip() != "{"]
    if lines_expected and begun and begun[0] is lines[0]:
        return "jsonl"
    if len(begun) < 2:
        return "jsonl" if len(lines) == 1 and _is_object(lines[0]) and not _wraps(lines[0]) else "json"
    return "jsonl" if any(_is_object(line) for line in begun) or len(begun) == len(lines) else "json"


def _is_object(line: str) -> bool:
    try:
        return isinstance(orjson.loads(line.strip().removesuffix(",")), dict)
    except ValueError:
        return False


def _wraps(line: str) -> bool:
    value = orjson.loads(line.strip().removesuffix(","))
    return guess(names_of(value)) is None
