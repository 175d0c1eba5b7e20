"""The rows of a dataset as people read them: conversations or texts with their problems, or tokens with the mask."""

from __future__ import annotations

from typing import Any

from afina.actions.datasets import check_file, dataset_path
from afina.actions.models import resolve_model
from afina.core.paths import Home
from afina.data.examples import Example
from afina.data.mapping import remembered
from afina.data.pages import PageRow, page
from afina.data.template import ChatTokenizer


def dataset_rows(home: Home, name: str, offset: int = 0, limit: int = 20) -> dict[str, Any]:
    """`{"rows": [{"row", "turns": [message, …] or "text", "chosen", "rejected", "problems": [Fault, …]}], "total"}`.

    Raises AfinaError `dataset_not_found`.
    """
    found, total = _page(home, name, offset, limit)
    return {
        "rows": [{"row": item.row, **_readable(item.example), "problems": item.problems} for item in found],
        "total": total,
    }


def dataset_tokens(
    home: Home, name: str, model: str, offset: int = 0, limit: int = 20, max_length: int | None = None
) -> dict[str, Any]:
    """The same rows as tokens of `model`: `{"rows": [{"row", "pieces": [{"text", "state"}], "tokens", "learned", "cut"}],
    "total"}`; a state is learned, read or cut. Rows that cannot be used have no pieces. Raises AfinaError."""
    counter = ChatTokenizer.load(resolve_model(home, model).folder)
    found, total = _page(home, name, offset, limit)
    return {"rows": [_tokens(item, counter, max_length) for item in found], "total": total}


def _page(home: Home, name: str, offset: int, limit: int) -> tuple[list[PageRow], int]:
    path = dataset_path(home, name)
    return page(path, offset, limit, check_file(home, path).rows, remembered(home, path))


def _tokens(item: PageRow, counter: ChatTokenizer, max_length: int | None) -> dict[str, Any]:
    pieces = counter.pieces(item.example, max_length=max_length) if item.example is not None else []
    states = [piece.state for piece in pieces]
    return {
        "row": item.row,
        "pieces": [{"text": piece.text, "state": piece.state} for piece in pieces],
        "tokens": len(pieces),
        "learned": states.count("learned"),
        "cut": states.count("cut"),
    }


def _readable(example: Example | None) -> dict[str, Any]:
    if example is None:
        return {"turns": []}
    if example.text is not None:
        return {"text": example.text}
    plain: dict[str, Any] = {"turns": [turn.as_json() for turn in example.turns]}
    for side, turns in (("chosen", example.chosen), ("rejected", example.rejected)):
        if turns is not None:
            plain[side] = [turn.as_json() for turn in turns]
    return plain
