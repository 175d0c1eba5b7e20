"""Everything that is wrong with a dataset, in one pass: the readers' faults, and what shows only over all rows.

Kept per row in memory: a hash of the content (16 bytes) and one of the answer (8 bytes), nothing else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from afina.core.errors import AfinaError
from afina.core.messages import N_, Message, say
from afina.data.examples import Example
from afina.data.faults import Fault, shorten
from afina.data.readers import read
from afina.data.report import Gatherer, Group, Report

if TYPE_CHECKING:
    from afina.data.template import ChatTokenizer

__all__ = ["FEW", "Group", "Report", "check"]

FEW = 50
"""Fewer conversations than this are learned by heart."""
SAME_SHARE, SAME_ROWS = 0.8, 20
"""From so many rows on, this share of equal answers is worth a warning."""


def check(
    path: Path,
    *,
    tokenizer: ChatTokenizer | None = None,
    max_length: int | None = None,
    validation: Path | None = None,
    train_on: str = "answers",
    system_prompt: str | None = None,
) -> Report:
    """Read the whole file once and report every problem of it, grouped by code.

    With a `tokenizer` tokens are counted and, given `max_length`, rows that will be cut are named. With `validation`,
    rows of that dataset that stand in this one too are named (`leak`). Raises AfinaError only when a file cannot be opened.
    """
    found = Gatherer()
    whole = _Whole(found, _keys(validation))
    lengths = _Lengths(found, tokenizer, max_length, train_on, system_prompt) if tokenizer is not None else None
    source = read(path)
    rows = 0
    for item in source:
        rows = max(rows, item.row or 0)
        if isinstance(item, Fault):
            found.add(item)
            continue
        whole.see(item)
        if lengths is not None:
            lengths.see(item)
    whole.end(rows)
    if lengths is not None:
        lengths.end()
    if not rows and not found.groups("error"):
        found.add(Fault("empty_file", say(N_("There is no example in the file."))))
    errors, warnings = found.groups("error"), found.groups("warning")
    counts = lengths.counts if lengths is not None else (None, None, None, None)
    tokens, answer_tokens, cut_tokens, longest = counts
    return Report(source.format, rows, tokens, answer_tokens, cut_tokens, longest, errors, warnings)


def _keys(path: Path | None) -> set[bytes]:
    """What stands in the dataset at `path`, by content."""
    return set() if path is None else {item.key() for item in read(path) if isinstance(item, Example)}


class _Whole:
    """What shows only when rows are compared: repetitions, leaks, equal answers, too few."""

    def __init__(self, found: Gatherer, validation: set[bytes]) -> None:
        self._found = found
        self._validation = validation
        self._first: dict[bytes, int] = {}
        self._answers: Counter[bytes] = Counter()
        self._sample: dict[bytes, str] = {}
        self._documents = False

    def see(self, example: Example) -> None:
        """Compare one example with those before it."""
        key = example.key()
        self._documents = example.text is not None
        if (earlier := self._first.setdefault(key, example.row)) != example.row:
            if self._found.is_full("duplicate"):
                self._found.count("duplicate")
            else:
                message = say(N_("Row {row} repeats row {earlier}."), row=example.row, earlier=earlier)
                self._add("duplicate", message, example)
        if key in self._validation:
            message = say(
                N_("Row {row} also stands in the validation dataset; validation loss would look too good."),
                row=example.row,
            )
            self._add("leak", message, example)
        if example.answers:
            answer = example.answers[-1].content.strip()
            mark = hashlib.blake2b(answer.encode(), digest_size=8).digest()
            self._answers[mark] += 1
            if self._answers[mark] == SAME_ROWS:
                self._sample[mark] = shorten(answer, 60)

    def _add(self, code: str, message: Message, example: Example) -> None:
        self._found.add(Fault(code, message, example.row, example.line, excerpt=_excerpt(example)))

    def end(self, rows: int) -> None:
        """What can be said when all rows have been seen."""
        if 0 < rows < FEW and not self._documents:
            text = (
                N_("1 row: the model will memorise it. 50 to 100 good examples are a sensible start.")
                if rows == 1
                else N_("{count} rows: the model will memorise them. 50 to 100 good examples are a sensible start.")
            )
            self._found.add(Fault("few_rows", say(text, count=rows)))
            self._found.total("few_rows", say(text, count=rows), rows)
        answers = self._answers.total()
        mark, same = next(iter(self._answers.most_common(1)), (b"", 0))
        if same >= SAME_ROWS and same >= SAME_SHARE * answers:
            text = N_("{same} of {count} answers are the same: “{answer}”.")
            message = say(text, same=same, count=answers, answer=self._sample[mark])
            self._found.add(Fault("constant_answer", message))
            self._found.total("constant_answer", message, same)


def _excerpt(example: Example) -> str:
    return shorten(example.text if example.text is not None else " / ".join(t.content[:200] for t in example.turns))


class _Lengths:
    """Tokens of the rows, and what a maximum length cuts off."""

    def __init__(
        self,
        found: Gatherer,
        tokenizer: ChatTokenizer,
        max_length: int | None,
        train_on: str,
        system_prompt: str | None,
    ) -> None:
        self._found = found
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._train_on = train_on
        self._system_prompt = system_prompt
        self._tokens = self._answers = self._cut = self._cut_answers = self._longest = self._rows = 0

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Tokens, answer tokens, cut tokens, tokens of the longest row."""
        return self._tokens, self._answers, self._cut, self._longest

    def see(self, example: Example) -> None:
        """Count one example; documents are divided, conversations cut."""
        limit = self._max_length if example.text is None else None
        try:
            encoded = self._tokenizer.encode(
                example, max_length=limit, train_on=self._train_on, system_prompt=self._system_prompt
            )
        except AfinaError as error:
            problem = error.problems[0]
            self._found.add(Fault("template_mismatch", problem.message, example.row, example.line, problem.field))
            return
        tokens = len(encoded.ids) + encoded.cut
        self._tokens += tokens
        self._answers += encoded.learned + encoded.cut_answer
        self._cut += encoded.cut
        self._cut_answers += encoded.cut_answer
        self._longest = max(self._longest, tokens)
        if encoded.cut:
            self._rows += 1
            text = N_("Row {row} has {tokens} tokens, {cut} more than {limit}; its end is cut.")
            message = say(text, row=example.row, tokens=tokens, cut=encoded.cut, limit=limit)
            fault = Fault("too_long", message, example.row, example.line, value=str(tokens), excerpt=_excerpt(example))
            self._found.add(fault)

    def end(self) -> None:
        """Say what the cut costs over all rows."""
        if self._rows:
            share = round(100 * self._cut_answers / max(1, self._answers), 1)
            text = (
                N_(
                    "1 row is longer than {limit} tokens; the end of its answer is cut ({share} % of all answer tokens)."
                )
                if self._rows == 1
                else N_(
                    "{count} rows are longer than {limit} tokens; the end of their answers is cut ({share} % of all answer tokens)."
                )
            )
            self._found.total("too_long", say(text, count=self._rows, limit=self._max_length, share=share))
