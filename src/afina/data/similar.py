"""Rows that say nearly the same: MinHash over pairs of words (rensa), found again through bands of equal hashes.

A sketch takes 96 bytes a row, whatever its length; rows are never compared one with every other. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

SLOTS, BANDS = 64, 8
"""Of rows with 85 % of their word pairs in common, 8 bands of 8 hashes find 92 %; of those with 90 %, 99 %."""
SAME = 0.85
"""From this estimated share of common word pairs on, two rows count as nearly the same."""
WORDS = 12
"""Shorter texts are not compared: one word more or less may change all they say."""
MOST = 1_000_000
"""Rows that are compared; 96 MB of sketches."""

LONG_WORD = 20
"""Characters of a word that count as many; every key or token has one."""
_IS_LONG = 1 << 32
_KEPT = 100_000
"""Words whose numbers are remembered."""

_SEED = 20261124
_ODD = np.array([(2 * n + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1 | 1 for n in range(SLOTS // BANDS)], dtype=np.uint64)


@dataclass(frozen=True)
class Sketches:
    """Sketches of some rows: their numbers, the low bytes of their hashes (n × 64), and their bands (n × 8)."""

    rows: NDArray[np.int64]
    bytes: NDArray[np.uint8]
    bands: NDArray[np.uint32]

    def without(self, rows: NDArray[np.int64]) -> Sketches:
        """All but those of these rows."""
        keep = ~np.isin(self.rows, rows)
        return Sketches(self.rows[keep], self.bytes[keep], self.bands[keep])


@dataclass(frozen=True)
class Words:
    """The words of some rows as numbers, one row's behind the other's; `counts`: words a row, `long`: whether one of them
    is long."""

    hashes: NDArray[np.uint64]
    counts: NDArray[np.int64]
    long: list[bool]


class _Hashes(dict[str, int]):
    """The number of each word: 32 bits that are the same in every process, and one more for a long word."""

    def __missing__(self, word: str) -> int:
        number = crc32(word.encode("utf-8", "surrogatepass"))
        if len(word) >= LONG_WORD:
            return number | _IS_LONG
        if len(self) >= _KEPT:
            self.clear()
        self[word] = number
        return number


_HASHES = _Hashes()


def words_of(texts: Iterable[str]) -> Words:
    """The words of these texts, without regard to capitals."""
    flat: list[int] = []
    counts: list[int] = []
    for text in texts:
        words = text.lower().split()
        counts.append(len(words))
        flat += map(_HASHES.__getitem__, words)
    hashes = np.array(flat, np.uint64)
    rows = np.repeat(np.arange(len(counts)), counts)[hashes >= _IS_LONG]
    long = np.zeros(len(counts), bool)
    long[rows] = True
    return Words(hashes, np.array(counts, np.int64), long.tolist())


def sketch(rows: Sequence[int], words: Words) -> Sketches:
    """Sketches of those rows that are long enough; `rows` are their numbers."""
    from rensa import RMinHash

    enough = words.counts >= WORDS
    kept = np.array(rows, np.int64)[enough]
    if not len(kept):
        return _none()
    said = words.hashes[np.repeat(enough, words.counts)]
    ends = np.cumsum(words.counts[enough])
    within = np.ones(len(said) - 1, bool)
    within[ends[:-1] - 1] = False  # the last word of a row and the first of the next are no pair
    pairs = _mixed(said)[within]
    places = np.concatenate([[0], ends - np.arange(1, len(ends) + 1)]).astype(np.uint64)
    found = RMinHash.digest_matrix_from_flat_token_hashes(pairs, places, SLOTS, _SEED).to_rows()
    hashes = np.array(found, dtype=np.uint64)
    bands = (hashes.reshape(len(kept), BANDS, SLOTS // BANDS) * _ODD).sum(axis=2, dtype=np.uint64) >> np.uint64(32)
    return Sketches(kept, (hashes & np.uint64(255)).astype(np.uint8), bands.astype(np.uint32))


def _mixed(said: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A number for each two neighbouring words (the mixing steps of splitmix64)."""
    pairs = said[:-1] * np.uint64(0x9E3779B97F4A7C15) ^ said[1:]
    pairs = (pairs ^ pairs >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed: NDArray[np.uint64] = pairs ^ pairs >> np.uint64(31)
    return mixed


def _none() -> Sketches:
    return Sketches(np.zeros(0, np.int64), np.zeros((0, SLOTS), np.uint8), np.zeros((0, BANDS), np.uint32))


def joined(parts: Sequence[Sketches]) -> Sketches:
    """All of them as one."""
    if not parts:
        return _none()
    fields = ("rows", "bytes", "bands")
    return Sketches(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))


def find_similar(sketches: Sketches) -> dict[int, int]:
    """For each row that is nearly the same as an earlier one, that earlier row. The sketches stand in order of rows."""
    found: dict[int, int] = {}
    for band in sketches.bands.T:
        order = np.argsort(band, kind="stable")
        values = band[order]
        new = np.ones(len(order), bool)
        new[1:] = values[1:] != values[:-1]
        first = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
        before = np.roll(order, 1)
        for other in (first, before):
            later, earlier = order[~new], other[~new]
            for start in range(0, len(later), 100_000):
                one, two = later[start : start + 100_000], earlier[start : start + 100_000]
                alike = (sketches.bytes[one] == sketches.bytes[two]).mean(axis=1) >= SAME
                for row, like in zip(sketches.rows[one[alike]], sketches.rows[two[alike]], strict=True):
                    found[int(row)] = min(found.get(int(row), int(like)), int(like))
    return found
