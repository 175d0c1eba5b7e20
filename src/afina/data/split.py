"""A validation split that stays put: seeded, decided row by row, with equal rows on one side.

A row goes to validation when the keyed hash of its content falls under a threshold. The threshold follows the share that
is still owed, so the number of rows comes out within one or two of `share`, also in small files. Only the row itself and
the rows before it decide: appending rows never moves an earlier one. The price is that putting in or taking out a row in
the middle may move a few of those behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from afina.data.examples import Example

SURE = 10
"""From so many different rows on there is at least one for validation."""


def split(examples: Iterable[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, validation), each in the order of the file; `share` of the different rows, 0 to 1, is for validation.

    The first row always trains, so training is never empty; a share of 0 gives no validation. Equal rows follow the first
    of them.
    """
    train: list[Example] = []
    held: list[Example] = []
    if share <= 0:
        return list(examples), held
    decided: dict[bytes, bool] = {}
    chosen = 0
    for example in examples:
        key = example.key()
        choice = decided.get(key)
        if choice is None:
            seen = len(decided) + 1
            choice = seen > 1 and _chosen(key, seed, share, seen, chosen)
            chosen += choice
            decided[key] = choice
        (held if choice else train).append(example)
    return train, held


def _chosen(key: bytes, seed: int, share: float, seen: int, chosen: int) -> bool:
    """Whether the `seen`-th different row goes to validation when `chosen` did before it."""
    owed = share * seen - chosen
    if seen >= SURE and chosen == 0:
        return True
    return _uniform(key, seed) < share * (1 + owed)


def _uniform(key: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on the content and the seed alone."""
    digest = hashlib.blake2b(key, digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") / 2**64
