"""A remedy at work: kept rows in, kept rows out, and a count of what happened. Touches no file.

Which remedies there are is said in `offers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from afina.data import repairs
from afina.data.entries import Entry, is_whole, unpack
from afina.data.offers import Way


@dataclass
class Remedy:
    """One remedy at work. `marks` are the rows that have the code; `shorten` makes one row fit.

    After `apply` has run to its end `removed` and `changed` say how many rows it touched, `left_out` how many places that
    were no rows.
    """

    code: str
    way: Way
    marks: frozenset[int] = frozenset()
    shorten: Callable[[Entry], Entry | None] | None = None
    removed: int = 0
    changed: int = 0
    left_out: int = 0
    _change: dict[Way, Callable[[Entry], Entry | None]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._change = {
            "drop": lambda entry: None,
            "thin": lambda entry: None,
            "leave_out": self._without_fault,
            "join": repairs.with_turns_joined,
            "map": repairs.with_known_roles,
            "convert": self._without_fault,
            "mask": repairs.masking(self.code),
            "shorten": lambda entry: self.shorten(entry) if self.shorten else entry,
        }

    def apply(self, numbered: Iterable[tuple[int, bytes]]) -> Iterator[tuple[bytes, bool]]:
        """(line, whether it is a row) of a version after the remedy, from (row, line) before it.

        Only the rows it is for are taken apart; all others go through as they are.
        """
        for row, line in numbered:
            if is_whole(line):
                if self.way == "leave_out" and unpack(line, row).faults[0].code == self.code:
                    self.left_out += 1
                else:
                    yield line, False
                continue
            if row not in self.marks:
                yield line, True
                continue
            before = unpack(line, row)
            after = self._change[self.way](before)
            if after is None:
                self.removed += 1
                continue
            self.changed += after is not before
            yield after.pack(), True

    def _without_fault(self, entry: Entry) -> Entry | None:
        """The row when it could be made out all the same, for instance where only a comma is missing before it."""
        if entry.example is None:
            return None
        return repairs.without(entry, self.code)


def thinned(answers: Sequence[tuple[int, bytes]]) -> frozenset[int]:
    """The rows to remove so that the commonest answer is no more frequent than all others together, ten times at least.

    `answers`: row and a hash of its first answer.
    """
    counts: dict[bytes, int] = {}
    for _, mark in answers:
        counts[mark] = counts.get(mark, 0) + 1
    if not counts:
        return frozenset()
    common = max(counts, key=lambda mark: counts[mark])
    kept = max(10, len(answers) - counts[common])
    rows = [row for row, mark in answers if mark == common]
    return frozenset(rows[kept:])
