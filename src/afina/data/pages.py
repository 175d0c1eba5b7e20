"""A few rows of a dataset to look at, with what is wrong with each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from afina.data.examples import Example
from afina.data.faults import Fault
from afina.data.formats import Mapping
from afina.data.readers import read


@dataclass
class PageRow:
    """One row as read: `example` is None when an error keeps it from being used."""

    row: int
    line: int | None
    example: Example | None = None
    problems: list[Fault] = field(default_factory=list)


def page(
    path: Path, offset: int, limit: int, total: int | None = None, mapping: Mapping | None = None
) -> tuple[list[PageRow], int]:
    """The rows `offset` + 1 to `offset` + `limit`, and how many there are in all.

    The file is read from its beginning, to its end unless `total` says that it is known. Faults of the file as a whole
    belong to no row and are not here. Raises AfinaError when the file cannot be opened.
    """
    rows: dict[int, PageRow] = {}
    last = 0
    for item in read(path, mapping):
        if item.row is None:
            continue
        if total is not None and item.row > offset + limit:
            break
        last = max(last, item.row)
        if not offset < item.row <= offset + limit:
            continue
        entry = rows.setdefault(item.row, PageRow(item.row, item.line))
        if isinstance(item, Fault):
            entry.problems.append(item)
        else:
            entry.example = item
    return [rows[number] for number in sorted(rows)], last if total is None else total
