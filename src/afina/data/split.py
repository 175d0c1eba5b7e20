"""A validation split that stays put: seeded, decided row by row, with equal rows on one side.

A row goes to validation when the keyed hash of its content falls under a threshold. The threshold follows the share that
is still owed, so the number of rows comes out within one or two of `share`, also in small files. Only the row itself and
the rows before it decide: appending rows never moves an earlier one. The price is that putting in or taking out a row in
the middle may move a few of those behind it.

By count it is the rows whose keyed hashes are lowest. Appending rows may then move rows from validation to training, as new
ones take their place, but never the other way: what was once learned is never used to test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from afina.data.examples import Example

SURE = 10
"""From so many different rows on there is at least one for validation."""


def split(
    examples: Iterable[Example], share: float, seed: int, count: int | None = None
) -> tuple[list[Example], list[Example]]:
    """(training, validation), each in the order of the file; see `sides`."""
    rows = list(examples)
    held = sides([example.key() for example in rows], share, seed, count) if share > 0 or count else [False] * len(rows)
    chosen = list(zip(rows, held, strict=True))
    return [row for row, side in chosen if not side], [row for row, side in chosen if side]


def sides(keys: Sequence[bytes], share: float, seed: int, count: int | None = None) -> list[bool]:
    """Which rows are for validation, by their keys (`Example.key`): `share` of the different ones, 0 to 1.

    The first row always trains, so training is never empty; a share of 0 gives no validation. Equal rows follow the first
    of them. With `count` so many different rows are for validation, whatever the share, as long as one is left to train.
    """
    if count is not None:
        return _by_count(keys, count, seed)
    if share <= 0:
        return [False] * len(keys)
    decided: dict[bytes, bool] = {}
    chosen = 0
    for key in keys:
        if key not in decided:
            seen = len(decided) + 1
            choice = seen > 1 and _chosen(key, seed, share, seen, chosen)
            chosen += choice
            decided[key] = choice
    return [decided[key] for key in keys]


def _by_count(keys: Sequence[bytes], count: int, seed: int) -> list[bool]:
    different = sorted(set(keys), key=lambda key: (_uniform(key, seed), key))
    held = set(different[: max(0, min(count, len(different) - 1))])
    return [key in held for key in keys]


def counts(total: int | None, rows: Sequence[int]) -> list[int | None]:
    """How many of `total` validation rows each of several datasets gives, by its size; None for each when there is no total."""
    if total is None or not sum(rows):
        return [None] * len(rows)
    exact = [total * size / sum(rows) for size in rows]
    given = [int(part) for part in exact]
    for place in sorted(range(len(rows)), key=lambda place: given[place] - exact[place])[: total - sum(given)]:
        given[place] += 1
    return list(given)


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
