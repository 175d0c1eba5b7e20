"""Shared prefixes once: examples that begin with the same tokens lie in a row with that beginning only once.

Causal attention never looks ahead, so what a model computes for a beginning does not depend on what follows it, and one
computation serves all examples that share it (the same system prompt, several answers to one question). Loss and
gradients are those of the examples end to end. The examples of a step are sorted by their tokens, so that beginnings meet;
of each, what the ones before it do not share is laid down as one run:

    P a b   P c   P c d      →      P a b | c | d      c and d look back at P, and d at c

Knows nothing of models: `segments.py` lets runs look back, `loss.py` counts what several examples learn at the same place.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afina.engine.batches import Item, Row, lay_end_to_end
from afina.engine.segments import Look

LEAST = 16
"""Tokens that looking back must save; fewer are computed sooner than looked for (a kernel call more in every layer)."""

WORTHWHILE = 0.1
"""The share of a dataset's tokens from which `share_prefixes: auto` is on."""

EXAMPLES_TO_COUNT = 20_000


@dataclass(frozen=True)
class Group:
    """The tokens [start, stop) of example `first` of a row are those of all examples up to `end`, too."""

    first: int
    end: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """What a row holds: `items` in their order, of which item i is laid down from its token begins[i] on; what comes
    before that stands with item owners[i]."""

    items: Sequence[Item]
    begins: Sequence[int]
    owners: Sequence[int]
    groups: Sequence[Group]

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return sum(len(item) - begin for item, begin in zip(self.items, self.begins, strict=True))


def rows_of(items: Iterable[Item], tokens_per_row: int) -> Iterator[Row]:
    """As `batches.rows_of`, every row with what its examples share laid down once. The examples are sorted first, and each row
    filled up: cut evenly, examples would part that share something."""
    for plan in plans(items, tokens_per_row):
        yield lay_out(plan) if plan.groups else lay_end_to_end(plan.items)


def saving(steps: Iterable[Sequence[Item]], tokens_per_row: int) -> float:
    """The share of the tokens of `steps` that need not be computed."""
    whole = computed = 0
    for items in steps:
        whole += sum(len(item) for item in items)
        computed += sum(plan.tokens for plan in plans(items, tokens_per_row))
    return 1.0 - computed / whole if whole else 0.0


def plans(items: Iterable[Item], tokens_per_row: int) -> Iterator[Plan]:
    """The rows of `items`, as few as the limit allows; an example longer than the limit has a row of its own."""
    ordered = sorted(items, key=lambda item: item.ids.numpy().tobytes())
    common = [0, *(_shared(one, other) for one, other in itertools.pairwise(ordered))]
    first = 0
    while first < len(ordered):
        end, tokens = first + 1, len(ordered[first])
        while end < len(ordered) and tokens + len(ordered[end]) - common[end] <= tokens_per_row:
            tokens += len(ordered[end]) - common[end]
            end += 1
        plan = _plan(ordered[first:end], common[first:end])
        while end > first + 1 and plan.tokens > tokens_per_row:  # what is too little to share is computed after all
            end -= 1
            plan = _plan(ordered[first:end], common[first:end])
        yield plan
        first = end


def _shared(one: Item, other: Item) -> int:
    """How many tokens the two have in common from the beginning."""
    length = min(len(one), len(other))
    differ = one.ids.numpy()[:length] != other.ids.numpy()[:length]
    return int(differ.argmax()) if differ.any() else length


def _plan(items: Sequence[Item], common: Sequence[int]) -> Plan:
    """common[i]: tokens that item i shares with the one before it. As the items are sorted, what the items of a stretch
    all share is the least of those; where it falls to that least, the stretch falls into stretches that share more."""
    begins, owners, groups = [0] * len(items), list(range(len(items))), []
    waiting = [(0, len(items), 0)]
    while waiting:
        first, end, depth = waiting.pop()
        if end - first < 2:
            continue
        least = min(common[first + 1 : end])
        cuts = [first, *(at for at in range(first + 1, end) if common[at] == least), end]
        if (end - first - 1) * (least - depth) >= LEAST:
            groups.append(Group(first, end, depth, least))
            depth = least
            begins[first + 1 : end] = [depth] * (end - first - 1)
            owners[first + 1 : end] = [first] * (end - first - 1)
        waiting += [(one, other, depth) for one, other in itertools.pairwise(cuts)]
    return Plan(items, begins, owners, groups)


def lay_out(plan: Plan) -> Row:
    """The row of a plan. A token that several examples share is learned as often as they learn it."""
    runs = [len(item) - begin for item, begin in zip(plan.items, plan.begins, strict=True)]
    starts = list(itertools.accumulate(runs, initial=0))
    ids = torch.empty(starts[-1], dtype=torch.long)
    positions, before = torch.empty_like(ids), torch.arange(-1, starts[-1] - 1)
    times = torch.zeros_like(ids)
    places: list[Tensor] = []  # of each example's tokens in the row
    for index, item in enumerate(plan.items):
        begin, start, end = plan.begins[index], starts[index], starts[index + 1]
        own = torch.arange(start, end)
        place = torch.cat([places[plan.owners[index]][:begin], own]) if begin else own
        places.append(place)
        times[place] += item.mask  # no place stands twice in one example
        if end > start:
            ids[start:end] = item.ids[begin:]
            positions[start:end] = torch.arange(begin, len(item))
            if begin:
                before[start] = place[begin - 1]
    learned = times.nonzero()[:, 0]
    looks = []
    for group in plan.groups:
        shift = starts[group.first] - plan.begins[group.first]
        look = Look(starts[group.first + 1], starts[group.end], group.start + shift, group.stop + shift)
        if look.end > look.first:  # else the others hold nothing more than the beginning
            looks.append(look)
    lengths = tuple(length for length in runs if length)
    at, weights = before[learned], times[learned].float()
    if bool((weights <= 1).all()) and len(set(at.tolist())) == len(at):
        return Row(ids, positions, lengths, at, ids[learned], tuple(looks))
    return Row(ids, positions, lengths, at, ids[learned], tuple(looks), weights)


def evenly(steps: int, examples_per_step: int) -> range:
    """The steps of an epoch by which the saving is counted: all of them, or some evenly spread where they are very many."""
    return range(0, steps, max(1, steps * examples_per_step // EXAMPLES_TO_COUNT))
