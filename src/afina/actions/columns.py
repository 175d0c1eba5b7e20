"""What the columns of a table mean: asked where their names do not say it, shown on the person's own rows, remembered."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from afina.actions.datasets import find_dataset
from afina.actions.rows import readable
from afina.core.errors import AfinaError
from afina.core.paths import Home
from afina.data.formats import Mapping, plain_name
from afina.data.mapping import guess_mapping, make_mapping, remember, remembered
from afina.data.readers import read

PARTS = ("prompt", "answer", "text", "system", "context")
"""What a column can be, as `Mapping` names it."""
SHOWN = 3
"""Rows shown as they would become conversations."""


@dataclass(frozen=True)
class Columns:
    """A table whose columns have to be explained: their names, first rows, the meaning that is chosen so far (column by
    part), whether it is remembered, and the first rows as they would be read with it (none while it is not complete)."""

    columns: list[str]
    samples: list[dict[str, str]]
    chosen: dict[str, str | None]
    remembered: bool
    rows: list[dict[str, Any]] = field(default_factory=list)


def column_mapping(home: Home, name: str, chosen: dict[str, str | None] | None = None) -> Columns | None:
    """What there is to say about the columns of a dataset, None where nothing has to be asked.

    `chosen`: what a person is trying; else what is remembered, else a guess. Raises AfinaError `dataset_not_found`.
    """
    path = find_dataset(home, name).file
    asked = guess_mapping(path)
    if asked is None:
        return None
    kept = remembered(home, path)
    mapping = kept or asked.mapping
    by_name = {plain_name(column): column for column in reversed(asked.columns)}
    if chosen is None:
        chosen = {part: by_name.get(getattr(mapping, part) or "") for part in PARTS} if mapping is not None else {}
    chosen = {part: chosen.get(part) or None for part in PARTS}
    try:
        rows = _rows(path, make_mapping(**chosen))
    except AfinaError:
        rows = []
    return Columns(asked.columns, asked.samples, chosen, kept is not None, rows)


def set_column_mapping(home: Home, name: str, chosen: dict[str, str | None]) -> Columns | None:
    """Remember what the columns of a dataset mean. Raises AfinaError `bad_mapping`, `dataset_not_found`."""
    path = find_dataset(home, name).file
    remember(home, path, make_mapping(**{part: chosen.get(part) or None for part in PARTS}))
    return column_mapping(home, name)


def _rows(path: Path, mapping: Mapping) -> list[dict[str, Any]]:
    entries = (entry for entry in read(path, mapping).entries() if entry.row is not None)
    return [{"row": entry.row, **readable(entry.example), "problems": entry.faults} for entry in islice(entries, SHOWN)]
