"""A stretch of a dataset looked through: every check that needs one row alone, and what comparing rows needs later.

What comes out is small and can be handed from one process to another; `checks.py` puts the stretches together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from afina.core.messages import N_, Message, say
from afina.data.examples import Example, Turn
from afina.data.faults import Fault, shorten
from afina.data.language import find_language
from afina.data.lengths import Lengths, Sums
from afina.data.personal import find_personal
from afina.data.report import Gatherer
from afina.data.secret import find_secret
from afina.data.similar import Sketches, joined, sketch, words_of

SPOKEN = 2000
"""The language of so many rows at the beginning is looked at, and of one in SPARSE behind them."""
SPARSE = 64
LONG = 20_000
"""Characters of a row that are compared with other rows."""
LONGER = 1_000_000
"""Characters of a row in which personal data are looked for."""


@dataclass
class Stretch:
    """What was found in some rows: one entry a usable row in `rows`, `lines`, `keys` and `answers` (0: none).

    end: the last row, usable or not; lines_read: lines behind us; common: the commonest answer and how often it came.
    """

    found: Gatherer
    end: int
    rows: NDArray[np.int64]
    lines: NDArray[np.int64]
    keys: NDArray[np.uint64]
    answers: NDArray[np.uint64]
    sketches: Sketches
    sums: Sums
    languages: Counter[str]
    documents: bool = False
    common: dict[int, str] = field(default_factory=dict)
    lines_read: int = 0


def mark(example: Example) -> int:
    """64 bits that are equal for two examples with the same content."""
    return int.from_bytes(example.key()[:8], "little")


def look(items: Iterable[Example | Fault], lengths: Lengths | None, compare: bool = True) -> Stretch:
    """Go through some rows. `compare`: also make what finding near duplicates needs."""
    found = Gatherer()
    examples: list[Example] = []
    end = 0
    for item in items:
        end = max(end, item.row or 0)
        if isinstance(item, Fault):
            found.add(item)
        else:
            examples.append(item)
    keys = [mark(example) for example in examples]
    texts = [_text(example) for example in examples]
    words = words_of(text[:LONG] for text in texts)
    for example, text, long in zip(examples, texts, words.long, strict=True):
        _sensitive(example, text, long, found)
    answers = [_answer(example) for example in examples]
    marks = [_hash(answer) if answer is not None else 0 for answer in answers]
    rows = [example.row for example in examples]
    return Stretch(
        found,
        end,
        np.array(rows, np.int64),
        np.array([example.line or 0 for example in examples], np.int64),
        np.array(keys, np.uint64),
        np.array(marks, np.uint64),
        sketch(rows, words) if compare else joined([]),
        lengths.see(examples, keys, found) if lengths is not None else Sums(),
        _languages(rows, keys, texts),
        any(example.text is not None for example in examples),
        _commonest(marks, answers),
    )


def _text(example: Example) -> str:
    if example.text is not None:
        return example.text
    said: tuple[Turn, ...] = (*example.turns, *(example.chosen or ()), *(example.rejected or ()))
    return "\n".join([turn.content for turn in said])


def _sensitive(example: Example, text: str, long: bool, found: Gatherer) -> None:
    if (long or len(text) > LONG) and (kind := find_secret(text)):
        message = say(N_("Row {row} looks like it holds a password or key ({kind})."), row=example.row, kind=kind)
        found.add(Fault("secret", message, example.row, example.line, value=kind))
    if kind := find_personal(text[:LONGER]):
        message = say(N_("Row {row} looks like it holds {kind}."), row=example.row, kind=Message(kind))
        found.add(Fault("personal_data", message, example.row, example.line, value=kind))


def _answer(example: Example) -> str | None:
    answers = example.answers
    return answers[-1].content.strip() if answers else None


def _hash(answer: str) -> int:
    return int.from_bytes(hashlib.blake2b(answer.encode(), digest_size=8).digest(), "little") | 1


def _commonest(marks: list[int], answers: Sequence[str | None]) -> dict[int, str]:
    """The commonest answer of the stretch, as its mark and beginning."""
    (most, _), *_ = [*Counter(marks).most_common(1), (0, 0)]
    return {most: shorten(answers[marks.index(most)], 60)} if most else {}


def _languages(rows: list[int], keys: list[int], texts: list[str]) -> Counter[str]:
    spoken: Counter[str] = Counter()
    for row, key, text in zip(rows, keys, texts, strict=True):
        weight = 1 if row <= SPOKEN else SPARSE if key % SPARSE == 0 else 0
        if weight and (language := find_language(text)):
            spoken[language] += weight
    return spoken
