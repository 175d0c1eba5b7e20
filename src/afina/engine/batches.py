"""Which examples make a step, in which order, and how they lie in memory. Nothing is padded.

The order of every epoch follows from the seed and the epoch's number alone, so a resumed run goes on exactly where it
was. A step's examples are laid end to end into rows of at most so many tokens; gradients of the rows add up, so how
many rows there are changes nothing but memory.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from afina.data.mix import mix
from afina.data.template import Encoded
from afina.engine import device as devices
from afina.engine.segments import Look


@dataclass(frozen=True)
class Item:
    """One encoded example: ids (L,) int32 and mask (L,) bool, True where the token is learned."""

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, encoded: Encoded) -> Item:
        """Compact tensors in place of Python's lists."""
        return cls(torch.tensor(encoded.ids, dtype=torch.int32), torch.tensor(encoded.mask, dtype=torch.bool))

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def learned(self) -> int:
        """How many of its tokens carry a loss."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class Row:
    """Examples end to end. ids, positions (T,); lengths of the examples; at (N,): the places whose next token is learned;
    targets (N,): those next tokens.

    Where examples share a beginning, `lengths` are those of what lies end to end, `looks` say what else comes before it,
    and weights (N,) how often each target is learned (None: all once, and no place has two targets).
    """

    ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    at: Tensor
    targets: Tensor
    looks: tuple[Look, ...] = ()
    weights: Tensor | None = None

    def to(self, device: torch.device) -> Row:
        """The same row on `device`."""
        if device.type == "cpu":
            return self
        move = (devices.to_device(each, device) for each in (self.ids, self.positions, self.at, self.targets))
        ids, positions, at, targets = move
        weights = None if self.weights is None else self.weights.to(device, non_blocking=True)
        return Row(ids, positions, self.lengths, at, targets, self.looks, weights)

    @property
    def learned(self) -> int:
        """How many tokens of its examples carry a loss."""
        return len(self.targets) if self.weights is None else int(self.weights.sum())

    def filled_up(self, multiple: int) -> Row:
        """The same with an example of no meaning at the end, of which nothing is learned, so that its length is a multiple of
        `multiple`: the loss and every gradient stay what they were."""
        more = -len(self) % multiple
        if not more:
            return self
        ids, positions = F.pad(self.ids, (0, more)), torch.cat([self.positions, torch.arange(more)])
        return replace(self, ids=ids, positions=positions, lengths=(*self.lengths, more))

    def __len__(self) -> int:
        return int(self.ids.shape[0])


def lay_end_to_end(items: Sequence[Item]) -> Row:
    """One row of `items`; positions restart at every example. The token that predicts token i stands at i - 1."""
    ids = torch.cat([item.ids for item in items]).long()
    mask = torch.cat([item.mask for item in items])
    learned = mask.nonzero()[:, 0]
    positions = torch.cat([torch.arange(len(item)) for item in items])
    return Row(ids, positions, tuple(len(item) for item in items), learned - 1, ids[learned])


def rows_of(items: Sequence[Item], tokens_per_row: int) -> Iterator[Row]:
    """`items` in their order, as few rows as the limit allows, and those as even as their order allows; one that is longer
    than the limit has a row of its own."""
    least, fewest = max(map(len, items), default=0), len(filled(items, tokens_per_row))
    limit = tokens_per_row
    if fewest > 1 and least < limit:
        # a row of few tokens costs nearly what one of many does, and the longest decides what memory is needed
        limit = least + bisect.bisect_left(range(least, limit), -fewest, key=lambda each: -len(filled(items, each)))
    return map(lay_end_to_end, filled(items, limit))


def filled(items: Sequence[Item], limit: int) -> list[list[Item]]:
    """What each row holds where one after the other is filled up to `limit` tokens."""
    rows: list[list[Item]] = []
    room = 0
    for item in items:
        if not rows or len(item) > room:
            rows.append([])
            room = limit
        rows[-1].append(item)
        room -= len(item)
    return rows


@dataclass(frozen=True)
class Part:
    """`count` examples of one dataset of a mix, and the share of them that an epoch uses (1: each once)."""

    count: int
    weight: float = 1.0


class Order:
    """The examples of every step of a run, by number.

    per_epoch: examples an epoch. The last step of an epoch may have fewer than `examples_per_step`; it is used as it is.
    """

    def __init__(self, parts: Sequence[Part], examples_per_step: int, seed: int) -> None:
        firsts = itertools.accumulate((part.count for part in parts), initial=0)
        self._parts = [
            (range(first, first + part.count), part.weight) for first, part in zip(firsts, parts, strict=False)
        ]
        self._examples_per_step = examples_per_step
        self._seed = seed
        self._epoch: tuple[int, list[int]] = (-1, [])
        self.per_epoch = len(self.epoch(0))
        self.steps_per_epoch = -(-self.per_epoch // examples_per_step)

    def epoch(self, number: int) -> list[int]:
        """The examples of epoch `number` (from 0), shuffled."""
        if self._epoch[0] != number:
            chosen = mix(self._parts, self._seed, number)
            random.Random(f"{self._seed}/{number}").shuffle(chosen)  # noqa: S311  no secret
            self._epoch = (number, chosen)
        return self._epoch[1]

    def step(self, number: int) -> list[int]:
        """The examples of step `number` (from 0) of the run."""
        epoch, place = divmod(number, self.steps_per_epoch)
        start = place * self._examples_per_step
        return self.epoch(epoch)[start : start + self._examples_per_step]
