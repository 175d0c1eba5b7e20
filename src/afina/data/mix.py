"""Several datasets as one: a weight says how often an epoch uses the rows of each. Knows nothing of order in a step."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

Row = TypeVar("Row")
"""An example, or its number: what the rows are made of does not matter here."""


def mix(parts: Sequence[tuple[Sequence[Row], float]], seed: int, epoch: int = 0) -> list[Row]:
    """The rows of one epoch (counted from 0), dataset after dataset; the order for training is made elsewhere.

    Weight w uses each row floor(w) times, and besides a fraction w - floor(w) of them, drawn by the seed: at least one
    row of a dataset that is not empty. Epoch after epoch the fraction moves on, so that 0.2 shows every row once in five.
    """
    rows: list[Row] = []
    for number, (examples, weight) in enumerate(parts):
        whole = math.floor(weight)
        rows.extend(list(examples) * whole)
        rows.extend(_fraction(examples, weight - whole, seed + number, epoch, at_least=0 if whole else 1))
    return rows


def _fraction(examples: Sequence[Row], share: float, seed: int, epoch: int, at_least: int) -> list[Row]:
    count = min(len(examples), max(at_least, round(share * len(examples))))
    if not count:
        return []
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)  # noqa: S311  not a secret
    start = epoch * count
    drawn = sorted(order[(start + step) % len(order)] for step in range(count))
    return [examples[index] for index in drawn]
