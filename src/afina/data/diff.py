"""What differs between two versions: rows removed, added, changed; exact, and cheap in memory (16 bytes a row).

Rows are compared by content and in order. Where as many go as come at one place, they are told as changed; where the
numbers differ, those that share most of their words.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from afina.core.files import read_json, write_json
from afina.data import blocks
from afina.data.entries import is_whole

PAIRS = 2500
"""So many pairs of rows at one place are compared word by word."""
ALIKE = 0.6
_WORD = re.compile(rb"[\w\x80-\xff]+")

Kind = Literal["removed", "added", "changed"]


@dataclass(frozen=True)
class Change:
    """One difference: the row's number before (None: added) and after (None: removed)."""

    kind: Kind
    before: int | None
    after: int | None


def diff(before: Path, after: Path) -> list[Change]:
    """The differences from one version's file to the other's, in order. Remembered, for versions never change.

    Raises OSError, zlib.error where a file cannot be read.
    """
    home = blocks.home_of(before)
    kept = home.state / "diffs" / f"{blocks.sha_of(before)}-{blocks.sha_of(after)}.json"
    try:
        return [Change(*item) for item in read_json(kept)]
    except (OSError, ValueError, TypeError):
        runs = _compare(_keys(before), _keys(after))
        found = [change for gone, new in runs for change in _paired(before, after, gone, new)]
    write_json(kept, [[change.kind, change.before, change.after] for change in found])
    return found


def _keys(path: Path) -> list[bytes]:
    return [hashlib.blake2b(line, digest_size=16).digest() for line in blocks.lines(path) if not is_whole(line)]


def _compare(one: list[bytes], other: list[bytes]) -> list[tuple[list[int], list[int]]]:
    """Walk through both at once; what has no partner left on the other side is gone or new.

    Gives the rows that went and those that came, place by place.
    """
    left, right = Counter(one), Counter(other)
    found: list[tuple[list[int], list[int]]] = []
    gone: list[int] = []
    new: list[int] = []
    at = to = 0
    while at < len(one) or to < len(other):
        if at < len(one) and to < len(other) and one[at] == other[to]:
            if gone or new:
                found.append((gone, new))
                gone, new = [], []
            left[one[at]] -= 1
            right[one[at]] -= 1
            at, to = at + 1, to + 1
        elif at < len(one) and (
            to >= len(other) or right[one[at]] < left[one[at]] or not _is_new(other[to], left, right)
        ):
            left[one[at]] -= 1
            gone.append(at + 1)
            at += 1
        else:
            right[other[to]] -= 1
            new.append(to + 1)
            to += 1
    return [*found, (gone, new)]


def _is_new(key: bytes, left: Counter[bytes], right: Counter[bytes]) -> bool:
    return left[key] < right[key]


def _paired(before: Path, after: Path, gone: list[int], new: list[int]) -> list[Change]:
    """Rows that went and rows that came at one place, those that belong together as changed."""
    if len(gone) == len(new):
        return [Change("changed", old, now) for old, now in zip(gone, new, strict=True)]
    partner = _partners(before, after, gone, new) if len(gone) * len(new) <= PAIRS else {}
    taken = set(partner.values())
    told = [Change("changed", row, partner[row]) if row in partner else Change("removed", row, None) for row in gone]
    return told + [Change("added", None, row) for row in new if row not in taken]


def _partners(before: Path, after: Path, gone: list[int], new: list[int]) -> dict[int, int]:
    """For rows that went the rows that took their place, in order."""
    words = {row: set(_WORD.findall(line.lower())) for row, line in blocks.rows_at(after, new)}
    found: dict[int, int] = {}
    waiting = list(new)
    for row, line in blocks.rows_at(before, gone):
        mine = set(_WORD.findall(line.lower()))
        for at, other in enumerate(waiting):
            if len(mine & words[other]) >= ALIKE * len(mine | words[other]):
                found[row] = other
                waiting = waiting[at + 1 :]
                break
    return found
