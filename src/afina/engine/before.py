"""What is known of a model before it learns anything, computed once: its loss on the validation rows, its answers to the prompts,
what its longest row takes.

All follow from the model, the tokens and the way of computing alone, so the next run over the same rows need not wait for
them. Kept as JSON, named by all of that; a file that cannot be read or written costs the computation and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from afina import __version__
from afina.core.files import read_json, write_json
from afina.engine.batches import Item, Row
from afina.engine.samples import MOST_TOKENS, Prompt

KEPT = 200


@dataclass(frozen=True)
class Cost:
    """What computing a row took, forward and backward: seconds a token, and bytes at the peak of the process."""

    seconds: float
    memory: int


class Before:
    """What is known of one model computed in one way (`facts`, plain JSON), in `folder`; None keeps nothing."""

    def __init__(self, folder: Path | None, facts: Sequence[Any]) -> None:
        self._folder = folder
        self._facts = [__version__, torch.__version__, *facts]

    def loss(self, items: Sequence[Item], tokens_per_row: int) -> float | None:
        """The loss on `items`, when it was kept."""
        found = self._read(self._about_loss(items, tokens_per_row))
        return found if isinstance(found, float) else None

    def keep_loss(self, items: Sequence[Item], tokens_per_row: int, loss: float) -> None:
        """Remember the loss on `items`."""
        self._write(self._about_loss(items, tokens_per_row), loss)

    def answers(self, prompts: Sequence[Prompt]) -> list[str] | None:
        """The answers to `prompts`, when they were kept."""
        found = self._read(self._about_answers(prompts))
        whole = isinstance(found, list) and len(found) == len(prompts) and all(isinstance(each, str) for each in found)
        return found if whole else None

    def keep_answers(self, prompts: Sequence[Prompt], answers: list[str]) -> None:
        """Remember the answers to `prompts`."""
        self._write(self._about_answers(prompts), answers)

    def cost(self, row: Row, way: Sequence[Any]) -> Cost | None:
        """What `row` takes in this `way` (plain JSON), when it was kept."""
        found = self._read(_about_cost(row, way))
        with suppress(TypeError):
            return Cost(**found)
        return None

    def keep_cost(self, row: Row, way: Sequence[Any], cost: Cost) -> None:
        """Remember what `row` takes."""
        self._write(_about_cost(row, way), asdict(cost))

    def _about_loss(self, items: Iterable[Item], tokens_per_row: int) -> list[Any]:
        digest = hashlib.sha256()
        for item in items:
            digest.update(len(item).to_bytes(8, "little") + item.ids.numpy().tobytes() + item.mask.numpy().tobytes())
        return ["loss", digest.hexdigest(), tokens_per_row]

    def _about_answers(self, prompts: Sequence[Prompt]) -> list[Any]:
        return ["answers", [prompt.ids for prompt in prompts], MOST_TOKENS]

    def _place(self, about: list[Any]) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{hashlib.sha256(json.dumps([*self._facts, *about]).encode()).hexdigest()[:40]}.json"

    def _read(self, about: list[Any]) -> Any:
        place = self._place(about)
        with suppress(OSError, ValueError):
            return None if place is None else read_json(place)
        return None

    def _write(self, about: list[Any], value: Any) -> None:
        place = self._place(about)
        if place is not None:
            with suppress(OSError):
                write_json(place, value)
                _tidy(place.parent)


def _about_cost(row: Row, way: Sequence[Any]) -> list[Any]:
    return ["cost", row.lengths, row.learned, *way]


def _tidy(folder: Path) -> None:
    """Keep the newest KEPT."""
    kept: list[tuple[float, Path]] = []
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError):  # another process tidies too
            kept.append((path.stat().st_mtime, path))
    for _, path in sorted(kept)[:-KEPT]:
        path.unlink(missing_ok=True)


def state_of(folders: Sequence[Path]) -> list[Any]:
    """What tells whether models or adapters are still the same: names, sizes and times of all their files."""
    found = []
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        stats = [(path, path.stat()) for path in files]
        found.append([str(folder), [[path.name, each.st_size, each.st_mtime_ns] for path, each in stats]])
    return found
