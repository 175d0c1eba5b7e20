"""What a run learns from and is tested with, as tokens: encoded a chunk at a time, or taken from the cache.

Rows are read in full only where their tokens are not known yet. The tokens of a whole dataset are kept, so another seed or
share of validation rows encodes nothing anew: which rows are held back follows from keys that are kept beside them. Knows
nothing of homes and manifests: a `Source` brings the rows and what they are called by content.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray

from afina.core.events import Warn
from afina.core.messages import N_, say
from afina.core.spec import TrainSpec
from afina.data.examples import Example
from afina.data.template import ChatTokenizer
from afina.engine.batches import Item, Part
from afina.engine.tables import COLUMNS, FORMAT, Cache, Chunk, Table, in_memory

ROWS_AT_ONCE = 1000


class Examples(Protocol):
    """Rows that can be gone through more than once and looked at singly: a list, or a dataset on disk."""

    def __iter__(self) -> Iterator[Example]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Example: ...


def nothing(keys: Sequence[bytes]) -> Sequence[bool]:
    """No row is for validation."""
    return [False] * len(keys)


def everything(keys: Sequence[bytes]) -> Sequence[bool]:
    """Every row is for validation."""
    return [True] * len(keys)


@dataclass(frozen=True)
class Source:
    """A dataset of a run.

    weight: the share of its rows that an epoch uses; held: which rows are for validation, by their keys (`Example.key`);
    name: what the rows are called by content, None where their tokens are not to be kept.
    """

    examples: Examples
    weight: float = 1.0
    held: Callable[[Sequence[bytes]], Sequence[bool]] = nothing
    name: str | None = None


class Items(Sequence[Item]):
    """Items of some tables, in order; each is made when it is asked for. lengths, learned: tokens of each."""

    def __init__(self, parts: Sequence[tuple[Table, NDArray[np.int64]]]) -> None:
        self._parts = [(table, numbers) for table, numbers in parts if len(numbers)]
        self._starts = np.cumsum([0, *(len(numbers) for _, numbers in self._parts)]).tolist()
        none = np.empty(0, np.int64)
        self.lengths = np.concatenate([none, *(table.lengths[numbers] for table, numbers in self._parts)])
        self.learned = np.concatenate([none, *(table.learned[numbers] for table, numbers in self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        part = bisect_right(self._starts, index) - 1
        table, numbers = self._parts[part]
        place = table.slice(int(numbers[index - self._starts[part]]))
        return Item(torch.from_numpy(table.ids[place]), torch.from_numpy(table.mask[place]))

    def heaviest(self, count: int) -> list[Item]:
        """The `count` longest, longest first: no step of as many has a longer row."""
        return [self[int(index)] for index in np.argsort(-self.lengths, kind="stable")[:count]]


class Held(Sequence[Example]):
    """The rows that are held back for validation, read when they are asked for."""

    def __init__(self, parts: Sequence[tuple[Examples, NDArray[np.int64]]]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(rows) for _, rows in parts)]).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]
        part = bisect_right(self._starts, index) - 1
        examples, rows = self._parts[part]
        return examples[int(rows[index - self._starts[part]])]


@dataclass(frozen=True)
class Tokens:
    """All that is learned from and tested with.

    parts: the datasets that have something to learn; held: the rows for validation as people wrote them; cut, cut_answer:
    tokens of the training rows past the maximum length, and those of them that would have been learned; cut_rows, empty:
    training examples that are cut, and that have nothing to learn.
    """

    train: Items
    parts: list[Part]
    validation: Items
    held: Sequence[Example]
    cut: int
    cut_answer: int
    cut_rows: int
    empty: int

    def warnings(self, max_length: int, limit: int) -> Iterator[Warn]:
        """What a person should know about the examples; `limit`: of how many validation uses at most."""
        if self.cut_rows:
            answers = self.cut_answer + int(self.train.learned.sum())
            share = round(100 * self.cut_answer / max(1, answers), 1)
            text = N_(
                "{rows} examples are longer than {limit} tokens; the end of their answers is cut ({share} % of all answer tokens)."
            )
            yield Warn("too_long", say(text, rows=self.cut_rows, limit=max_length, share=share))
        if self.empty:
            text = N_("{rows} examples are left out: nothing of their answers is left to learn from.")
            yield Warn("nothing_left", say(text, rows=self.empty))
        if len(self.validation) > limit:
            text = N_("Validation uses {used} of {all} examples, evenly spread, to save time.")
            yield Warn("validation_sampled", say(text, used=limit, all=len(self.validation)))


def read(sources: Sequence[Source], chat: ChatTokenizer, spec: TrainSpec, cache: Path | None) -> Tokens:
    """Encode the `sources` as `spec` says, or take what is known of them from the folder `cache`. Raises AfinaError."""
    train, validation, parts, held = [], [], [], []
    cut = cut_answer = cut_rows = empty = 0
    for source in sources:
        table = _table(source, chat, spec, cache)
        aside = np.array(source.held([key.tobytes() for key in table.keys]), bool)
        of_validation = aside[table.rows]
        of_train = ~of_validation
        cut += int(table.cut[of_train].sum())
        cut_answer += int(table.cut_answer[of_train].sum())
        cut_rows += int((table.cut[of_train] > 0).sum())
        empty += int((table.learned[of_train] == 0).sum())
        useful = table.learned > 0
        learned_from = (of_train & useful).nonzero()[0]
        train.append((table, learned_from))
        validation.append((table, (of_validation & useful).nonzero()[0]))
        held.append((source.examples, aside.nonzero()[0]))
        if len(learned_from):
            parts.append(Part(len(learned_from), source.weight))
    return Tokens(Items(train), parts, Items(validation), Held(held), cut, cut_answer, cut_rows, empty)


def _table(source: Source, chat: ChatTokenizer, spec: TrainSpec, cache: Path | None) -> Table:
    def make() -> Iterator[Chunk]:
        return _chunks(source.examples, chat, spec)

    if source.name is None or cache is None:
        return in_memory(make())
    return Cache(cache).table(_name(source.name, chat, spec), make)


def _name(content: str, chat: ChatTokenizer, spec: TrainSpec) -> str:
    """Everything the tokens of a dataset depend on, as one short name."""
    facts = [FORMAT, content, chat.fingerprint(), spec.max_length, spec.train_on, spec.system_prompt]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]


def _chunks(examples: Iterable[Example], chat: ChatTokenizer, spec: TrainSpec) -> Iterator[Chunk]:
    """The columns of some rows at a time."""
    rows, end, first = iter(examples), 0, 0
    while some := list(islice(rows, ROWS_AT_ONCE)):
        chunk = _chunk(some, chat, spec)
        chunk["ends"] += end
        chunk["rows"] += first
        yield chunk
        end, first = int(chunk["ends"][-1]) if len(chunk["ends"]) else end, first + len(some)


def _chunk(examples: Sequence[Example], chat: ChatTokenizer, spec: TrainSpec) -> Chunk:
    ids: list[NDArray[np.int32]] = []
    mask: list[NDArray[np.bool_]] = []
    numbers: list[tuple[int, int, int, int, int]] = []
    for row, example in enumerate(examples):
        for encoded in chat.encode_all(
            example, max_length=spec.max_length, train_on=spec.train_on, system_prompt=spec.system_prompt
        ):
            ids.append(np.array(encoded.ids, np.int32))
            mask.append(np.array(encoded.mask, bool))
            numbers.append((len(encoded.ids), row, encoded.cut, encoded.cut_answer, encoded.learned))
    lengths, of_rows, cut, cut_answer, learned = np.array(numbers, np.int64).reshape(-1, 5).T
    columns = {
        "ids": np.concatenate([np.empty(0, np.int32), *ids]),
        "mask": np.concatenate([np.empty(0, bool), *mask]),
        "ends": np.cumsum(lengths),
        "rows": of_rows,
        "cut": cut,
        "cut_answer": cut_answer,
        "learned": learned,
        "keys": np.frombuffer(b"".join(example.key() for example in examples), COLUMNS["keys"]),
    }
    return {name: columns[name].astype(kind) for name, kind in COLUMNS.items()}
