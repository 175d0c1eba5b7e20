"""Finding rows of a version by a text they hold. Only what is said is searched, not the names of fields."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from afina.data import blocks
from afina.data.entries import is_whole


def rows_with(path: Path, text: str) -> list[int]:
    """The numbers of the rows of the version at `path` that hold `text`, in any case. Raises OSError, zlib.error."""
    return list(_found(path, " ".join(text.split()).casefold()))


@lru_cache(maxsize=32)
def _found(path: Path, text: str) -> tuple[int, ...]:
    raw = orjson.dumps(text)[1:-1].decode()  # as it stands in a line of JSON
    return tuple(
        row
        for row, line in blocks.numbered(path)
        if raw in line.decode("utf-8", "replace").casefold()
        and any(text in said.casefold() for said in _said(orjson.loads(line)))
        and not is_whole(line)
    )


def _said(value: Any, key: str = "") -> Iterator[str]:
    """The texts in a kept row, without roles and without what Afina itself wrote about it."""
    if isinstance(value, str):
        if key not in ("role", "from"):
            yield value
    elif isinstance(value, dict):
        for name, part in value.items():
            if name != "faults":
                yield from _said(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _said(part, key)
