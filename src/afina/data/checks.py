"""Everything that is wrong with a dataset, in one pass: the readers' faults, and what shows only over all rows.

Kept per row in memory: 32 bytes (number, line, a hash of the content, one of the answer) and 104 for near duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from afina.core.messages import N_, Message, say
from afina.data.examples import Example
from afina.data.faults import Fault, Unreadable
from afina.data.folders import size_of
from afina.data.formats import Mapping
from afina.data.language import NAMES
from afina.data.lengths import Lengths, Sums, said_of_cuts
from afina.data.parallel import processors, stretches, suits
from afina.data.readers import Folder, Source, read
from afina.data.report import FIRST, Gatherer, Group, Report
from afina.data.scan import Stretch, look, mark
from afina.data.similar import MOST, find_similar, joined

if TYPE_CHECKING:
    from afina.data.template import ChatTokenizer

__all__ = ["FEW", "Group", "Report", "check"]

FEW = 50
"""Fewer conversations than this are learned by heart."""
SAME_SHARE, SAME_ROWS = 0.8, 20
"""From so many rows on, this share of equal answers is worth a warning."""
COUNTED = 32 * 1024 * 1024
"""Bytes of a file whose tokens are all counted."""
SAMPLED = 8 * 1024 * 1024
"""Bytes of a larger file whose tokens are counted, spread over all of it."""
STRETCH = 512
QUOTED = 50_000
"""Rows from which the beginnings of repeated rows are quoted."""


def check(
    path: Path,
    *,
    tokenizer: ChatTokenizer | None = None,
    max_length: int | None = None,
    validation: Path | None = None,
    train_on: str = "answers",
    system_prompt: str | None = None,
    mapping: Mapping | None = None,
    validation_mapping: Mapping | None = None,
    workers: int | None = None,
) -> Report:
    """Read the whole file or folder once and report every problem of it, grouped by code.

    With a `tokenizer` tokens are counted and, given `max_length`, rows that will be cut are named. With `validation`,
    rows of that dataset that stand in this one too are named (`leak`). `mapping`, `validation_mapping`: see `readers.read`. Large files of JSON
    lines are looked through by `workers` processes (as many as there are processors). Raises AfinaError only when the path
    cannot be opened.
    """
    source = read(path, mapping)
    size = size_of(path)
    share = 1.0 if size <= COUNTED else SAMPLED / size
    lengths = None if tokenizer is None else Lengths(tokenizer, max_length, train_on, system_prompt, share)
    whole = _Whole(_keys(validation, validation_mapping))
    workers = processors() if workers is None else workers
    try:
        if isinstance(source, Source) and workers > 1 and suits(source, lengths):
            parts = stretches(source, lengths, workers, lambda: whole.compares)
        else:
            parts = _stretches(source, lengths, lambda: whole.compares)
        for part in parts:
            whole.add(part)
    except Unreadable as end:
        whole.found.add(end.fault)
    return whole.report(source, lengths, lambda rows: _excerpts(path, mapping, rows))


def _stretches(source: Source | Folder, lengths: Lengths | None, compare: Callable[[], bool]) -> Iterator[Stretch]:
    items = iter(source)
    while part := list(islice(items, STRETCH)):
        yield look(part, lengths, compare())


def _keys(path: Path | None, mapping: Mapping | None) -> NDArray[np.uint64]:
    """What stands in the dataset at `path`, by content."""
    keys = [] if path is None else [mark(item) for item in read(path, mapping) if isinstance(item, Example)]
    return np.unique(np.array(keys, np.uint64))


def _excerpts(path: Path, mapping: Mapping | None, rows: set[int]) -> dict[int, str]:
    """How these rows begin."""
    last = max(rows, default=0)
    found: dict[int, str] = {}
    for item in read(path, mapping) if rows else ():
        if (item.row or 0) > last:
            break
        if isinstance(item, Example) and item.row in rows:
            found[item.row] = item.excerpt
    return found


class _Whole:
    """All stretches put together, and what shows only when rows are compared."""

    def __init__(self, validation: NDArray[np.uint64]) -> None:
        self.found = Gatherer()
        self._validation = validation
        self._parts: list[Stretch] = []
        self._rows = self._compared = 0
        self._sums = Sums()
        self._languages: Counter[str] = Counter()

    @property
    def compares(self) -> bool:
        """Whether further rows will be compared with those before them."""
        return self._compared < MOST

    def add(self, part: Stretch) -> None:
        """Take in the next rows."""
        self.found.merge(part.found, 0, 0)
        self._rows = max(self._rows, part.end)
        self._compared += len(part.sketches.rows)
        self._sums.add(part.sums)
        self._languages += part.languages
        part.found = Gatherer()
        self._parts.append(part)

    def report(
        self, source: Source | Folder, lengths: Lengths | None, excerpts: Callable[[set[int]], dict[int, str]]
    ) -> Report:
        """What can be said when all rows have been seen."""
        used = sum(len(part.rows) for part in self._parts)
        compared = list(self._compare()) if used else []
        quoted = excerpts({int(row) for _, rows in compared for row in rows[:FIRST] if row <= QUOTED})
        for faults, rows in compared:
            for fault in faults:
                self.found.add(replace(fault, excerpt=quoted.get(fault.row or 0)))
            if len(rows) > len(faults):
                self.found.total(faults[0].code, None, len(rows))
                self.found.mark(faults[0].code, rows[len(faults) :])
        self._few()
        self._constant()
        self._spoken()
        sums, estimated = self._sums, lengths is not None and lengths.samples
        if estimated and sums.rows:
            sums = sums.times(used / sums.rows)
        if lengths is not None and sums.rows_cut:
            self.found.total("too_long", said_of_cuts(sums, lengths.max_length), sums.rows_cut)
        if not self._rows and not self.found.groups("error"):
            self.found.add(Fault("empty_file", say(N_("There is no example in the file."))))
        counts = (sums.tokens, sums.answers, sums.cut, sums.longest)
        tokens, answers, cut, longest = counts if lengths is not None else (None, None, None, None)
        errors, warnings, notes = (self.found.groups(kind) for kind in ("error", "warning", "note"))
        return Report(
            source.format,
            self._rows,
            tokens,
            answers,
            cut,
            longest,
            errors,
            warnings,
            sums.histogram,
            self.found.marks,
            notes,
            estimated,
        )

    def _compare(self) -> Iterator[tuple[list[Fault], NDArray[np.int64]]]:
        """Rows that repeat an earlier one, exactly or nearly, and those that stand in the validation data too: the findings
        for the first ones, and the numbers of all."""
        rows, lines, keys = (
            np.concatenate([getattr(part, name) for part in self._parts]) for name in ("rows", "lines", "keys")
        )
        first = _first_of_equals(keys)
        again = np.flatnonzero(first != np.arange(len(keys)))
        text = N_("Row {row} repeats row {earlier}.")
        places = [(int(rows[at]), int(lines[at]), int(rows[first[at]])) for at in again[:FIRST]]
        yield [_fault("duplicate", text, *place) for place in places], rows[again]
        similar = find_similar(joined([part.sketches for part in self._parts]).without(rows[again]))
        near = np.array(sorted(similar), np.int64)
        text = N_("Row {row} says nearly the same as row {earlier}.")
        places = [(row, int(lines[np.searchsorted(rows, row)]), similar[row]) for row in near[:FIRST].tolist()]
        yield [_fault("near_duplicate", text, *place) for place in places], near
        both = np.flatnonzero(np.isin(keys, self._validation)) if len(self._validation) else np.zeros(0, int)
        text = N_("Row {row} also stands in the validation dataset; validation loss would look too good.")
        yield [_fault("leak", text, int(rows[at]), int(lines[at])) for at in both[:FIRST]], rows[both]

    def _few(self) -> None:
        if 0 < self._rows < FEW and not any(part.documents for part in self._parts):
            text = N_("{count} rows: the model will memorise them. 50 to 100 good examples are a sensible start.")
            if self._rows == 1:
                text = N_("1 row: the model will memorise it. 50 to 100 good examples are a sensible start.")
            self.found.add(Fault("few_rows", say(text, count=self._rows)))
            self.found.total("few_rows", None, self._rows)

    def _constant(self) -> None:
        parts = [part.answers[part.answers != 0] for part in self._parts]
        answers, counts = (
            np.unique(np.concatenate(parts), return_counts=True) if parts else (np.array([]), np.array([]))
        )
        if not len(answers):
            return
        same, count = int(counts.max()), int(counts.sum())
        if same >= SAME_ROWS and same >= SAME_SHARE * count:
            most = int(answers[counts.argmax()])
            answer = next((part.common[most] for part in self._parts if most in part.common), "…")
            message = say(
                N_("{same} of {count} answers are the same: “{answer}”."), same=same, count=count, answer=answer
            )
            self.found.add(Fault("constant_answer", message))
            self.found.total("constant_answer", None, same)

    def _spoken(self) -> None:
        """Which languages the rows are in, the commonest first, those under one percent together as others."""
        total = self._languages.total()
        shares = {name: round(100 * count / total) for name, count in self._languages.most_common() if name != "other"}
        known = {name: share for name, share in shares.items() if share}
        if rest := 100 - sum(known.values()) if total else 0:
            known["other"] = rest
        message: Message | None = None
        for name, share in reversed(known.items()):
            one = say(N_("{share} % {language}"), share=share, language=Message(NAMES[name]))
            message = one if message is None else say(N_("{first}, {rest}"), first=one, rest=message)
        if message is not None:
            self.found.add(Fault("language", say(N_("{languages}."), languages=message)))
            self.found.total("language", None, self._rows)


def _first_of_equals(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each entry the place of the first that is equal to it."""
    order = np.argsort(keys, kind="stable")
    new = np.ones(len(keys), bool)
    new[1:] = keys[order][1:] != keys[order][:-1]
    starts = np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))
    first = np.empty(len(keys), np.int64)
    first[order] = order[starts]
    return first


def _fault(code: str, text: str, row: int, line: int, earlier: int | None = None) -> Fault:
    return Fault(
        code, Message(text, {"row": row} | ({} if earlier is None else {"earlier": earlier})), row, line or None
    )
