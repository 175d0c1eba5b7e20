"""Writing a dataset into the page: what a pasted text is taken for, and keeping it as a file like any other."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from afina.actions.datasets import add_dataset, counter_of
from afina.actions.rows import readable
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.data.entries import joined
from afina.data.readers import read, read_file
from afina.data.report import Report
from afina.registry.records import DatasetInfo

ENDINGS = {"json": ".json", "jsonl": ".jsonl", "csv": ".csv", "pairs": ".txt", "plain": ".txt"}
SHOWN = 5
"""Rows of a text that are shown before it is kept."""


@dataclass(frozen=True)
class Preview:
    """What a text is taken for: its first rows and the report on all of them."""

    rows: list[dict[str, Any]]
    report: Report


def preview_text(home: Home, text: str) -> Preview:
    """Read a text that someone is writing, as a file would be read. Nothing is kept."""
    from afina.data.checks import check

    with _as_file(home, text) as path:
        report = check(path, tokenizer=counter_of(home).tokenizer)
        first = islice((entry for entry in joined(read(path).entries()) if entry.row is not None), SHOWN)
        rows = [{"row": entry.row, **readable(entry.example), "problems": entry.faults} for entry in first]
    return Preview(rows, report)


def write_dataset(home: Home, name: str, text: str) -> DatasetInfo:
    """Keep a text as a file in the datasets folder; the ending follows what it is. Raises AfinaError `empty_text`, `bad_name`."""
    if not text.strip():
        message = say(N_("There is nothing to keep yet."))
        raise AfinaError(Problem("empty_text", message, say(N_("Write or paste at least one pair.")), "text"))
    with _as_file(home, text) as path:
        container = read_file(path).container
    ending = ENDINGS.get(container or "", ".txt")
    stem = name.strip()
    return add_dataset(home, stem if stem.lower().endswith(ending) else stem + ending, io.BytesIO(_bytes(text)))


@contextmanager
def _as_file(home: Home, text: str) -> Iterator[Path]:
    home.state.mkdir(parents=True, exist_ok=True)
    path = home.state / f"written-{uuid.uuid4().hex}"
    path.write_bytes(_bytes(text))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
