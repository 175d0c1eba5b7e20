"""How many tokens rows have, and what a maximum length cuts off. Counts add up over the parts of a file.

In a very large file only a part of the rows is counted, chosen by their content, and the sums are multiplied; whether the
chat template takes a row is still asked for every kind of conversation in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from afina.core.messages import N_, Message, say
from afina.data.examples import Example
from afina.data.faults import Fault
from afina.data.report import Gatherer

if TYPE_CHECKING:
    from afina.data.template import ChatTokenizer

KINDS = 10_000
"""Kinds of conversations that are remembered as accepted."""


@dataclass
class Sums:
    """Tokens in all, of answers, cut off, cut off of answers, of the longest row; rows counted, rows cut."""

    tokens: int = 0
    answers: int = 0
    cut: int = 0
    cut_answers: int = 0
    longest: int = 0
    rows: int = 0
    rows_cut: int = 0
    by_length: Counter[int] = field(default_factory=Counter)

    def add(self, other: Sums) -> None:
        """Take in what was counted elsewhere."""
        for name in (one.name for one in fields(self)):
            mine, more = getattr(self, name), getattr(other, name)
            setattr(self, name, max(mine, more) if name == "longest" else mine + more)

    def times(self, factor: float) -> Sums:
        """The sums for all rows, estimated from a part of them; the longest row is the longest that was seen."""
        spread = Counter({length: round(rows * factor) for length, rows in self.by_length.items()})
        return Sums(
            round(self.tokens * factor),
            round(self.answers * factor),
            round(self.cut * factor),
            round(self.cut_answers * factor),
            self.longest,
            round(self.rows * factor),
            round(self.rows_cut * factor),
            spread,
        )

    @property
    def histogram(self) -> list[list[int]]:
        """[tokens at most, rows] in order of length; the steps grow with the length."""
        return [[length, rows] for length, rows in sorted(self.by_length.items())]


class Lengths:
    """Counts rows with one tokenizer. `share`: the part of the rows that is counted, 1 for all."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        max_length: int | None = None,
        train_on: str = "answers",
        system_prompt: str | None = None,
        share: float = 1.0,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._settings = (train_on, system_prompt)
        self._share = share
        self._limit = round(share * 2**64)
        self._accepted: set[tuple[object, ...]] = set()

    @property
    def samples(self) -> bool:
        """Whether only a part of the rows is counted."""
        return self._limit < 2**64

    @property
    def told(self) -> dict[str, Any]:
        """What another process needs to count in the same way, as plain values; the tokenizer must have an origin."""
        train_on, system_prompt = self._settings
        folder, template, now = self.tokenizer.origin or (None, "auto", None)
        return {
            "origin": (str(folder), template, now and now.isoformat()),
            "max_length": self.max_length,
            "train_on": train_on,
            "system_prompt": system_prompt,
            "share": self._share,
        }

    def see(self, examples: Sequence[Example], keys: Sequence[int], found: Gatherer) -> Sums:
        """Count these rows; what does not fit the template, and what is cut, goes to `found`."""
        sums = Sums()
        chosen = [example for example, key in zip(examples, keys, strict=True) if self._counts(example, key)]
        train_on, system_prompt = self._settings
        for example, counted in zip(
            chosen, self.tokenizer.measure(chosen, self.max_length, train_on, system_prompt), strict=True
        ):
            if isinstance(counted, Fault):
                found.add(counted)
                continue
            if self.samples and len(self._accepted) < KINDS:
                self._accepted.add(_kind(example))
            sums.tokens += counted.tokens
            sums.answers += counted.answers
            sums.cut += counted.cut
            sums.cut_answers += counted.cut_answers
            sums.longest = max(sums.longest, counted.tokens)
            sums.rows += 1
            step = 8 if counted.tokens <= 1024 else 64 if counted.tokens <= 8192 else 1024
            sums.by_length[-(-counted.tokens // step) * step] += 1
            if counted.cut:
                sums.rows_cut += 1
                found.add(_too_long(example, counted.tokens, counted.cut, self.max_length))
        return sums

    def _counts(self, example: Example, key: int) -> bool:
        return key < self._limit or _kind(example) not in self._accepted


def _kind(example: Example) -> tuple[object, ...]:
    """What decides whether a template takes a conversation: who speaks when, what is empty, where tools are called."""
    if example.text is not None:
        return ("text",)
    turns = (*example.turns, *(example.chosen or ()))
    return (example.tools is None, *((t.role, not t.content.strip(), bool(t.tool_calls)) for t in turns))


def _too_long(example: Example, tokens: int, cut: int, limit: int | None) -> Fault:
    text = N_("Row {row} has {tokens} tokens, {cut} more than {limit}; its end is cut.")
    message = say(text, row=example.row, tokens=tokens, cut=cut, limit=limit)
    return Fault("too_long", message, example.row, example.line, value=str(tokens), excerpt=example.excerpt)


def said_of_cuts(sums: Sums, limit: int | None) -> Message:
    """What the cut costs over all rows."""
    share = round(100 * sums.cut_answers / max(1, sums.answers), 1)
    text = N_(
        "{count} rows are longer than {limit} tokens; the end of their answers is cut ({share} % of all answer tokens)."
    )
    if sums.rows_cut == 1:
        text = N_("1 row is longer than {limit} tokens; the end of its answer is cut ({share} % of all answer tokens).")
    return say(text, count=sums.rows_cut, limit=limit, share=share)
