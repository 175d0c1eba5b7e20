"""Rows out of tables: CSV and TSV through the csv module, Parquet and Arrow through pyarrow, streamed.

A cell of a CSV table is always text; an empty one is no value. Knows nothing of formats.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from afina.core.messages import N_, say
from afina.data.faults import Fault, Unreadable, not_text, shorten
from afina.data.json_rows import Record, Records
from afina.data.textfile import MAX_ROW, TextFile, too_big
from afina.data.watch import seen

DELIMITERS = ",\t;|"
BATCH = 256
COLUMNS = 10_000
"""A wider table is no dataset of texts, and would cost much time and memory a row."""

csv.field_size_limit(MAX_ROW)


@dataclass(frozen=True)
class Dialect:
    """How a text divides into cells. In an unquoted table a quote is a character like any other."""

    delimiter: str = ","
    quoted: bool = True

    def rows(self, lines: Iterable[str], strict: bool = True) -> Any:
        """A reader over `lines`; a strict one raises csv.Error where quotes do not match."""
        if self.quoted:
            return csv.reader(lines, delimiter=self.delimiter, strict=strict)
        return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE, strict=strict)


def find_dialect(head: str, complete: bool) -> Dialect:
    """The delimiter that divides the first line with content into most columns; "," when none does.

    A table with tabs whose quotes do not match is taken as unquoted. `complete`: `head` is the whole text.
    """
    first = next((line for line in head.split("\n") if line.strip()), "")
    counts = {mark: len(next(Dialect(mark).rows([first], strict=False), [])) for mark in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda mark: counts[mark])
    if delimiter != "\t":
        return Dialect(delimiter)
    try:
        for _ in Dialect("\t").rows(io.StringIO(head)):
            pass
    except csv.Error as error:
        return Dialect("\t", quoted=not complete and _unclosed(error))
    return Dialect("\t")


def _unclosed(error: csv.Error) -> bool:
    return "end of data" in str(error)


def header(head: str, dialect: Dialect) -> list[str]:
    """The names in the first line with content."""
    lines = (line + "\n" for line in head.split("\n") if line.strip())
    try:
        return [name.strip() for name in next(dialect.rows(lines), [])]
    except csv.Error:
        return []


def read_csv(source: TextFile, dialect: Dialect) -> Records:
    """One record a row of the table behind the header; quoted cells may hold line breaks."""
    with source.open() as file:
        reader = dialect.rows(file)
        names: list[str] = []
        row = 0
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                row += 1
                yield _bad_quotes(row, line, error)
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                if len(names) > COLUMNS:
                    message = say(N_("The table has {count} columns; a dataset of texts has a few."), count=len(names))
                    raise Unreadable(Fault("bad_csv", message, None, line))
                yield from _repeated(names, line)
                continue
            row += 1
            yield _row(row, line, names, cells)


def _bad_quotes(row: int, line: int, error: csv.Error) -> Fault:
    if "field limit" in str(error):
        return too_big(row, line)
    text = N_("Row {row}, line {line}: text follows a closing quote; a quote inside a cell is written as two.")
    if _unclosed(error):
        text = N_("Row {row}, line {line}: a quote opens in this row and is never closed.")
    return Fault("bad_csv", say(text, row=row, line=line), row, line)


def _repeated(names: list[str], line: int) -> Iterator[Fault]:
    for name in [name for name, count in Counter(names).items() if name and count > 1][:20]:
        message = say(N_("The column “{field}” stands twice in the header."), field=shorten(name, 60))
        yield Fault("bad_csv", message, None, line, shorten(name, 60))


def _row(row: int, line: int, names: list[str], cells: list[str]) -> Record | Fault:
    if fault := not_text(delimited(cells), row, line):
        return fault
    if any(cell.strip() for cell in cells[len(names) :]):
        message = say(
            N_("Row {row} has {found} columns, but the header has {expected}."),
            row=row,
            found=len(cells),
            expected=len(names),
        )
        return Fault("bad_csv", message, row, line, excerpt=shorten(delimited(cells)))
    values = {name: cell for name, cell in zip_longest(names, cells[: len(names)]) if name}
    return Record(row, line, values)


def delimited(cells: list[str]) -> str:
    """The cells in one text, for excerpts."""
    return " | ".join(cells)


def read_arrow(path: Path, kind: str) -> Records:
    """One record a row; `kind` is "parquet", "arrow" (file) or "arrow_stream"."""
    import pyarrow

    row = 0
    try:
        for batch in _batches(path, kind):
            seen(batch.nbytes)
            for value in _values(batch):
                row += 1
                yield Fault("not_utf8", _bad_cell(row), row) if value is None else Record(row, None, value)
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError) as error:
        message = say(N_("The file cannot be read as {kind}: {reason}."), kind=kind, reason=shorten(str(error)))
        raise Unreadable(Fault("bad_parquet", message, row + 1 if row else None)) from None


def _bad_cell(row: int) -> Any:
    return say(N_("Row {row} holds bytes that are not UTF-8 text."), row=row)


def _values(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch; None for one whose text is not UTF-8.

    The full validation comes first: in a damaged file offsets may point anywhere, and reading them would end the process.
    """
    import pyarrow

    try:
        batch.validate(full=True)
        yield from batch.to_pylist()
        return
    except pyarrow.ArrowInvalid:
        pass
    for number in range(batch.num_rows):
        row = batch.slice(number, 1)
        try:
            row.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise
            yield None
            continue
        yield row.to_pylist()[0]


def _batches(path: Path, kind: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    with closing(pyarrow.OSFile(str(path))) as file:  # not mapped: a file that shrinks meanwhile would end the process
        if kind == "parquet":
            table = pyarrow.parquet.ParquetFile(file)
            yield from table.iter_batches(batch_size=BATCH)
        elif kind == "arrow":
            reader = pyarrow.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield from _slices(reader.get_batch(number))
        else:
            for batch in pyarrow.ipc.open_stream(file):
                yield from _slices(batch)


def _slices(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, BATCH):
        yield batch.slice(start, BATCH)
