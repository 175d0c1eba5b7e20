"""Examples that share a beginning: it is laid down once, and loss and gradients are those of the examples end to end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from afina.core import events
from afina.core.files import read_json
from afina.data.examples import Example
from afina.engine import model, prefixes
from afina.engine.batches import Item, Row, lay_end_to_end
from tests.invariant.common import job, losses, of_type, run, until
from tests.invariant.test_packed import assert_same, gradients, wrapped

Tokens = tuple[int, ...]


def item(ids: list[int], learned: list[bool] | None = None) -> Item:
    mask = [place > 0 for place in range(len(ids))] if learned is None else learned
    return Item(torch.tensor(ids, dtype=torch.int32), torch.tensor(mask))


def seen(row: Row) -> list[Tokens]:
    """Of each token of the row: the tokens it sees, itself the last, in the order of their positions."""
    ids, positions = row.ids.tolist(), row.positions.tolist()
    paths, start = [], 0
    for length in row.lengths:
        for at in range(start, start + length):
            places = [*range(start, at + 1)]
            for look in row.looks:
                if look.first <= at < look.end:
                    places += range(look.start, look.stop)
            places.sort(key=lambda place: positions[place])
            assert [positions[place] for place in places] == list(range(len(places)))
            paths.append(tuple(ids[place] for place in places))
        start += length
    assert start == len(row)
    return paths


def learned(row: Row) -> Counter[tuple[Tokens, int]]:
    """What is learned: (the tokens before, the token), and how often."""
    paths = seen(row)
    weights = [1.0] * len(row.targets) if row.weights is None else row.weights.tolist()
    told: Counter[tuple[Tokens, int]] = Counter()
    for at, target, weight in zip(row.at.tolist(), row.targets.tolist(), weights, strict=True):
        told[paths[at], target] += int(weight)
    return told


def wanted(items: list[Item]) -> Counter[tuple[Tokens, int]]:
    told: Counter[tuple[Tokens, int]] = Counter()
    for each in items:
        ids = tuple(each.ids.tolist())
        told.update((ids[:at], ids[at]) for at in each.mask.nonzero()[:, 0].tolist())
    return told


TREES = st.lists(
    st.tuples(st.sampled_from([0, 5, 30, 45]), st.sampled_from([0, 3, 17]), st.lists(st.integers(1, 3), max_size=40)),
    min_size=1,
    max_size=9,
)


@given(TREES, st.integers(1, 200), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_the_layout_holds_the_examples(
    trees: list[tuple[int, int, list[int]]], tokens_per_row: int, random: Random
) -> None:
    """Every example can be read from the rows, each token sees exactly what stands before it, and is learned as often."""
    items = []
    for common, second, own in trees:
        ids = [9] * common + [8] * second + own or [1]
        items.append(item(ids, [place > 0 and random.random() < 0.5 for place in range(len(ids))]))
    rows = list(prefixes.rows_of(items, tokens_per_row))
    paths = {path for row in rows for path in seen(row)}
    assert {tuple(each.ids.tolist()) for each in items} <= paths
    assert sum((learned(row) for row in rows), Counter()) == wanted(items)
    assert sum(row.learned for row in rows) == sum(each.learned for each in items)
    assert sum(len(row) for row in rows) <= sum(len(each) for each in items)
    assert all(len(row) <= tokens_per_row or len(row) == max(len(path) for path in seen(row)) for row in rows)
    saved = 1 - sum(len(row) for row in rows) / sum(len(each) for each in items)
    assert prefixes.saving([items], tokens_per_row) == pytest.approx(saved)


def words(*lengths: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(5)
    return [torch.randint(3, 256, (length,), generator=random).tolist() for length in lengths]


A, B, C, D, E, F = words(25, 18, 40, 7, 30, 3)  # shorter and longer than the sliding window of 16
CASES = {
    "one beginning": [A + B, A + C, A + D, A + E],
    "nested": [A + B + D, A + B + C, A + B + F, A + C + E, A + C + B, A + F, E + A, E + B],
    "nothing shared": [A, B, C, D],
    "one is the beginning of others": [A, A + B, A + B + C, C + D],
    "the same several times": [A + B, A + B, A + B, C + D, C + D, E],
    "far back": [C + C + A, C + C + B, C + C + F, C + C + E + D],
}


def examples(case: str, learn_all: bool) -> list[Item]:
    """Answers differ in what of the beginning they learn, too."""
    random = torch.Generator().manual_seed(6)
    made = []
    for ids in CASES[case]:
        mask = torch.ones(len(ids), dtype=torch.bool) if learn_all else torch.rand(len(ids), generator=random) < 0.5
        mask[0] = False
        made.append(Item(torch.tensor(ids, dtype=torch.int32), mask))
    return made


def relative(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a gradient."""
    return max(float((given[name] - each).norm() / each.norm().clamp(min=1e-3)) for name, each in wanted.items())


@pytest.mark.parametrize("learn_all", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_shared_is_not_shared(family_model: Path, case: str, learn_all: bool) -> None:
    items = examples(case, learn_all)
    plain, row = lay_end_to_end(items), next(prefixes.rows_of(items, 10_000))
    assert (len(row) == len(plain)) == (case == "nothing shared")
    found = []
    for each in (plain, row):
        _, base = wrapped(family_model, fast=True)
        found.append((model.Network(base).backward(each, 0.5), gradients(base)))
    assert found[1][0] == pytest.approx(found[0][0], rel=2e-6)
    assert_same(found[1][1], found[0][1])
    assert relative(found[1][1], found[0][1]) < 1e-5


@pytest.mark.parametrize("again", [False, True])
def test_every_weight_learns_the_same(family_model: Path, again: bool) -> None:
    """Full fine-tuning: embeddings, norms and the head too; with activations kept or computed again."""
    items = examples("nested", learn_all=True)
    found = []
    for row in (lay_end_to_end(items), next(prefixes.rows_of(items, 10_000))):
        base = model.load(family_model, torch.float32, torch.device("cpu")).requires_grad_(True)
        base.train()
        network = model.Network(base)
        if again:
            network.checkpoint_activations()
        found.append((network.backward(row, 1.0), gradients(base)))
    assert found[1][0] == pytest.approx(found[0][0], rel=2e-6)
    assert_same(found[1][1], found[0][1])
    assert relative(found[1][1], found[0][1]) < 1e-5


def test_in_bfloat16_it_is_as_near(family_model: Path) -> None:
    items = examples("nested", learn_all=True)
    plain, row = lay_end_to_end(items), next(prefixes.rows_of(items, 10_000))
    exact = float(model.Network(model.load(family_model, torch.float32, torch.device("cpu"))).loss(plain))
    narrow = model.Network(model.load(family_model, torch.bfloat16, torch.device("cpu")))
    assert [float(narrow.loss(each)) for each in (plain, row)] == pytest.approx([exact, exact], rel=3e-3)


SYSTEM = (
    "You are a small model of Timor-Leste. Answer as well as you can, in a few words, and say so when you do not know."
)


def plan_of(said: list[events.Event]) -> events.Preflight:
    return of_type(said, events.Preflight)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing": "on", "train_on": "all"}, {"method": "full"}])
def test_a_run_learns_the_same(family_model: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {"system_prompt": SYSTEM, "epochs": 3, "learning_rate": 3e-3, "rows": 16, **settings}
    off, on = (run(job(family_model, tmp_path / switch, share_prefixes=switch, **settings)) for switch in ("off", "on"))
    assert (plan_of(off).shared_prefixes, plan_of(off).path) == (0, "fast")
    assert 0.4 < plan_of(on).shared_prefixes < 0.75
    assert losses(on) == pytest.approx(losses(off), rel=1e-4)
    assert losses(on)[0] - losses(on)[-1] > 0.01
    checks = [[event.loss for event in of_type(said, events.Eval)] for said in (on, off)]
    assert checks[0] == pytest.approx(checks[1], rel=1e-4)
    tokens = [
        [event.tokens for event in of_type(said, kind)] for kind in (events.Step, events.Eval) for said in (on, off)
    ]
    assert tokens[0] == tokens[1]
    assert tokens[2] == tokens[3]
    name = "model/model.safetensors" if settings.get("method") == "full" else "adapter/adapter_model.safetensors"
    given, wanted = load_file(tmp_path / "on" / name), load_file(tmp_path / "off" / name)
    for key, tensor in wanted.items():
        assert (given[key] - tensor).norm() <= 2e-3 * tensor.norm()


def test_shared_where_it_is_worth_it(tiny_model: Path, tmp_path: Path) -> None:
    """Automatic is on from 10 % of the tokens; texts that begin differently are computed as ever."""
    alike = run(job(tiny_model, tmp_path / "alike", system_prompt=SYSTEM))
    assert plan_of(alike).shared_prefixes > 0.4
    texts = [Example((), text=" ".join(map(str, words(12)[0][number:])), row=number) for number in range(1, 10)]
    different = replace(job(tiny_model, tmp_path / "different"), train=texts)
    assert plan_of(run(different)).shared_prefixes == 0


def test_who_cannot_share_says_so_when_asked_to(tiny_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"system_prompt": SYSTEM, "lora_dropout": 0.1, "max_steps": 1}
    for switch, expected in (("on", ["prefixes_not_shared"]), ("auto", []), ("off", [])):
        said = run(job(tiny_model, tmp_path / switch, share_prefixes=switch, **settings))
        assert (plan_of(said).path, plan_of(said).shared_prefixes) == ("packed", 0)
        assert [event.code for event in of_type(said, events.Warn) if "prefixes" in event.code] == expected


@pytest.mark.parametrize("method", ["lora", "full"])
def test_resume_and_repetition_hold_with_shared_prefixes(tiny_model: Path, tmp_path: Path, method: str) -> None:
    settings: dict[str, Any] = {
        "epochs": 2,
        "save_every": 5,
        "system_prompt": SYSTEM,
        "train_on": "all",
        "method": method,
    }
    whole = run(job(tiny_model, tmp_path / "whole", **settings))
    twice = run(job(tiny_model, tmp_path / "twice", **settings))
    assert losses(whole) == losses(twice)
    killed = list(until(job(tiny_model, tmp_path / "killed", **settings), 7))
    again = run(job(tiny_model, tmp_path / "killed", **settings))
    first = of_type(again, events.Step)[0].step
    assert 1 < first <= 8
    assert losses(killed)[: first - 1] + losses(again) == losses(whole)
    assert read_json(tmp_path / "killed" / "checkpoints" / "step-000012" / "state.json")["share_prefixes"] is True


def test_resumed_with_less_memory_it_goes_on_as_it_began(tiny_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_every": 2, "batch_size": 8, "system_prompt": SYSTEM}
    whole = run(job(tiny_model, tmp_path / "whole", **settings))
    list(until(job(tiny_model, tmp_path / "part", **settings), 2))
    again = run(replace(job(tiny_model, tmp_path / "part", **settings), memory_limit=1))
    assert losses(again) == pytest.approx(losses(whole)[-len(losses(again)) :], rel=1e-5)
    assert read_json(tmp_path / "part" / "checkpoints" / "step-000003" / "state.json")["share_prefixes"] is True


def test_resumed_where_nothing_can_be_shared_it_learns_on(tiny_model: Path, tmp_path: Path) -> None:
    """The same run on another machine may be computed in another way, which knows no shared prefixes."""
    settings: dict[str, Any] = {"save_every": 2, "system_prompt": SYSTEM}
    whole = run(job(tiny_model, tmp_path / "whole", **settings))
    list(until(job(tiny_model, tmp_path / "part", **settings), 3))
    with pytest.MonkeyPatch.context() as patch:
        own = model.Network.__init__
        patch.setattr(model.Network, "__init__", lambda network, given: own(network, given, best="packed"))
        again = run(job(tiny_model, tmp_path / "part", **settings))
    assert (plan_of(again).path, plan_of(again).shared_prefixes) == ("packed", 0)
    assert losses(again) == pytest.approx(losses(whole)[-len(losses(again)) :], rel=1e-4)
