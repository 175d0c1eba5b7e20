"""The rows of a dataset as people read them: conversations or texts with their problems, or tokens with the mask.

Rows come from the version in the store, a few at a time, whatever the size of the dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from afina.actions.datasets import LENGTH, counter_of, find_dataset
from afina.actions.models import resolve_model
from afina.core.paths import Home
from afina.data import store, versions
from afina.data.cache import checked
from afina.data.entries import Entry
from afina.data.examples import Example
from afina.data.marks import Measure, lengths, marked
from afina.data.report import Report
from afina.data.search import rows_with
from afina.data.template import ChatTokenizer


@dataclass(frozen=True)
class Asked:
    """Which rows are wanted: with this problem, holding this text."""

    problem: str | None = None
    search: str | None = None
    max_length: int | None = None
    validation: str | None = None


def dataset_rows(home: Home, name: str, offset: int = 0, limit: int = 20, asked: Asked = Asked()) -> dict[str, Any]:
    """`{"rows": [{"row", "turns": [message, …] or "text", "chosen", "rejected", "raw", "problems": [Fault, …]}],
    "total": rows that are wanted, "version"}`. Raises AfinaError `dataset_not_found`.
    """
    found, total, sha256 = _page(home, name, offset, limit, asked)
    rows = [
        {
            "row": entry.row,
            **readable(entry.example),
            "raw": entry.raw if entry.example is None else None,
            "problems": entry.faults,
        }
        for entry in found
    ]
    return {"rows": rows, "total": total, "version": sha256}


def dataset_tokens(
    home: Home,
    name: str,
    model: str,
    offset: int = 0,
    limit: int = 20,
    max_length: int | None = None,
    asked: Asked = Asked(),
) -> dict[str, Any]:
    """The same rows as tokens of `model`: `{"rows": [{"row", "pieces": [{"text", "state"}], "tokens", "learned", "cut",
    "problems"}], "total", "version"}`; a state is learned, read or cut. Rows that cannot be used have no pieces but the
    problems that say why. Raises AfinaError."""
    counter = ChatTokenizer.load(resolve_model(home, model).folder)
    found, total, sha256 = _page(home, name, offset, limit, asked)
    return {"rows": [_tokens(entry, counter, max_length) for entry in found], "total": total, "version": sha256}


def full_report(home: Home, name: str, max_length: int | None = LENGTH, validation: str | None = None) -> Report:
    """The report on what is current, measured against `max_length` and a validation dataset."""
    held = find_dataset(home, validation).path if validation else None
    counter = counter_of(home)
    return checked(
        home,
        find_dataset(home, name).path,
        tokenizer=counter.tokenizer,
        tokenizer_key=counter.mark,
        max_length=max_length,
        validation=held,
    )


def dataset_lengths(home: Home, name: str) -> list[int]:
    """The tokens of every row that is a conversation and can be used; [] without a model to count with."""
    path = store.version_path(home, versions.history(home, find_dataset(home, name).file).step.sha256)
    return [tokens for tokens in lengths(home, path, measure(home)) if tokens]


def measure(
    home: Home, max_length: int | None = None, validation: str | None = None, model: str | None = None
) -> Measure:
    """What rows are measured by. Raises AfinaError `model_not_found`, `dataset_not_found`."""
    counter = counter_of(home, model)
    held = find_dataset(home, validation).path if validation else None
    return Measure(counter.tokenizer, counter.mark, max_length or LENGTH, held)


def _page(home: Home, name: str, offset: int, limit: int, asked: Asked) -> tuple[list[Entry], int, str]:
    """The entries, how many are wanted in all, the version."""
    sha256 = versions.history(home, find_dataset(home, name).file).step.sha256
    path = store.version_path(home, sha256)
    wanted: list[int] | range = range(1, store.count(home, sha256) + 1)
    if asked.problem is not None:
        wanted = marked(home, path, asked.problem, measure(home, asked.max_length, asked.validation))
    if asked.search is not None and asked.search.strip():
        holding = rows_with(path, asked.search)
        wanted = holding if asked.problem is None else sorted(set(wanted) & set(holding))
    return store.entries_at(home, sha256, list(wanted[offset : offset + limit])), len(wanted), sha256


def _tokens(entry: Entry, counter: ChatTokenizer, max_length: int | None) -> dict[str, Any]:
    pieces = counter.pieces(entry.example, max_length=max_length) if entry.usable and entry.example is not None else []
    states = [piece.state for piece in pieces]
    return {
        "row": entry.row,
        "pieces": [{"text": piece.text, "state": piece.state} for piece in pieces],
        "tokens": len(pieces),
        "learned": states.count("learned"),
        "cut": states.count("cut"),
        "problems": [] if pieces else entry.faults,
    }


def readable(example: Example | None) -> dict[str, Any]:
    """An example as a plain object for people and programs."""
    if example is None:
        return {"turns": []}
    if example.text is not None:
        return {"text": example.text}
    plain: dict[str, Any] = {"turns": [turn.as_json() for turn in example.turns]}
    for side, turns in (("chosen", example.chosen), ("rejected", example.rejected)):
        if turns is not None:
            plain[side] = [turn.as_json() for turn in turns]
    return plain
