"""The small parts: loss in chunks, order of examples, schedules, optimizers, advice, layout of memory."""

from __future__ import annotations

import math
import sys
from itertools import combinations, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from afina.core import events
from afina.engine import loss as losses
from afina.engine import memory, optim
from afina.engine.batches import Item, Order, Part, filled, rows_of
from afina.engine.loss import cross_entropy
from afina.engine.watch import Watch


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (1.0, 5.0), (0.25, None), (2.0, 3.0)])
def test_loss_in_chunks_is_the_loss(monkeypatch: pytest.MonkeyPatch, scale: float, softcap: float | None) -> None:
    monkeypatch.setattr("afina.engine.loss.SCORES_AT_ONCE", 4 * 50 * 33)
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(100, 8), torch.randn(50, 8), torch.randn(50)
    targets = torch.randint(0, 50, (100,))
    given = [tensor.clone().requires_grad_(True) for tensor in (hidden, weight, bias)]
    wanted = [tensor.clone().requires_grad_(True) for tensor in (hidden, weight, bias)]
    scores = functional.linear(*wanted) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    expected = functional.cross_entropy(scores, targets, reduction="sum")
    (expected * 0.3).backward()
    loss = cross_entropy(*given, targets, scale, softcap)
    (loss * 0.3).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(given, wanted, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_looking_makes_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation beside a trained head costs what it costs beside a frozen one."""
    asked: list[bool] = []
    rows = losses._rows
    monkeypatch.setattr(losses, "_rows", lambda *given: asked.append(given[-1]) or rows(*given))
    hidden, targets = torch.randn(5, 8), torch.tensor([1, 2, 3, 4, 5])
    weight, bias = torch.randn(11, 8, requires_grad=True), torch.randn(11, requires_grad=True)
    learned = cross_entropy(hidden, weight, bias, targets)
    with torch.no_grad():
        looked = cross_entropy(hidden, weight, bias, targets)
    assert asked == [True, False]
    assert looked.item() == pytest.approx(learned.item())
    learned.backward()
    assert weight.grad is not None


def test_nothing_learned_is_no_loss() -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    loss = cross_entropy(hidden, torch.randn(50, 8), None, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0


def test_an_epoch_uses_every_example_once_in_an_order_of_its_own() -> None:
    order = Order([Part(10)], 4, seed=1)
    assert (order.per_epoch, order.steps_per_epoch) == (10, 3)
    first = [index for step in range(3) for index in order.step(step)]
    second = [index for step in range(3, 6) for index in order.step(step)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert [len(order.step(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert Order([Part(10)], 4, seed=1).step(4) == order.step(4)
    assert Order([Part(10)], 4, seed=2).epoch(0) != order.epoch(0)


def test_weights_of_a_mix() -> None:
    order = Order([Part(10, 1.0), Part(20, 0.2), Part(3, 2.0)], 4, seed=1)
    epochs = [order.epoch(number) for number in range(5)]
    assert order.per_epoch == 10 + 4 + 6
    assert all(sum(index < 10 for index in epoch) == 10 for epoch in epochs)
    assert sorted(index for epoch in epochs for index in epoch if 10 <= index < 30) == list(range(10, 30))
    assert all(sorted(index for index in epoch if index >= 30) == [30, 30, 31, 31, 32, 32] for epoch in epochs)


def test_rows_hold_what_fits_and_nothing_is_split() -> None:
    items = [Item(torch.arange(length, dtype=torch.int32), torch.arange(length) > 0) for length in (5, 6, 30, 2, 3)]
    rows = list(rows_of(items, 12))
    assert [row.lengths for row in rows] == [(5, 6), (30,), (2, 3)]
    assert rows[0].positions.tolist() == [*range(5), *range(6)]
    assert rows[0].at.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert rows[0].targets.tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 5]


@given(lengths=st.lists(st.integers(1, 40), max_size=12), limit=st.integers(1, 60))
def test_rows_are_as_few_as_the_limit_allows_and_then_as_even_as_the_order_allows(
    lengths: list[int], limit: int
) -> None:
    items = [Item(torch.zeros(length, dtype=torch.int32), torch.ones(length, dtype=torch.bool)) for length in lengths]
    rows, full = list(rows_of(items, limit)), filled(items, limit)
    assert [length for row in rows for length in row.lengths] == lengths
    assert len(rows) == len(full)
    cuts = combinations(range(1, len(lengths)), max(0, len(full) - 1))
    ways = ([sum(lengths[at:end]) for at, end in pairwise((0, *each, len(lengths)))] for each in cuts)
    assert max(map(len, rows), default=0) == min(map(max, ways), default=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "inverse_sqrt"])
def test_schedules(schedule: str) -> None:
    rates = [optim.rate_at(step, 20, 4, schedule) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later <= earlier for earlier, later in pairwise(rates[4:]))
    assert rates[-1] > 0
    assert (rates[-1] < 0.1) == (schedule in ("linear", "cosine"))
    assert all(optim.rate_at(step, 5, 0, schedule) > 0 for step in range(5))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_optimizers_find_the_bottom(name: str) -> None:
    torch.manual_seed(0)
    goal = torch.randn(6, 4)
    weights = [torch.nn.Parameter(torch.zeros(6, 4)), torch.nn.Parameter(torch.zeros(4))]
    trained = optim.Trained([("w", weights[0]), ("b", weights[1])])
    optimizer = optim.build(name, trained, 0.05, 0.0)
    for _ in range(200):
        loss = ((weights[0] + weights[1] - goal) ** 2).mean()
        loss.backward()
        optim.step(optimizer, trained)
        trained.clear()
    assert loss.item() < 0.02


def test_small_updates_are_not_lost_to_rounding() -> None:
    """In bfloat16 alone, 1 + 0.001 is 1: the master keeps what the weight cannot."""
    weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    trained = optim.Trained([("w", weight)])
    optimizer = optim.build("sgd", trained, 0.001, 0.0)
    optimizer.param_groups[0]["momentum"] = 0.0
    for _ in range(20):
        (-weight.float().sum()).backward()
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32
        optim.step(optimizer, trained)
        trained.clear()
    assert trained.named()["w"][0, 0].item() == pytest.approx(1.02, rel=1e-4)
    assert weight[0, 0].item() == pytest.approx(1.02, rel=4e-3)


@pytest.mark.parametrize("kernels", [True, False])
def test_clipping(kernels: bool) -> None:
    weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))]
    trained = optim.Trained([("a", weights[0]), ("b", weights[1])])
    trained.by_kernels = trained.by_kernels and kernels
    optimizer = optim.build("sgd", trained, 1.0, 0.0)
    assert optim.norm(trained) == 0.0
    (3 * weights[0].sum() - 2 * weights[1].float().sum()).backward()
    norm = optim.norm(trained)
    assert norm == pytest.approx(math.sqrt(27 + 16))
    assert optim.clipped(norm, 0.0) == optim.clipped(norm, 7.0) == optim.clipped(math.inf, 1.0) == 1.0
    optim.step(optimizer, trained, optim.clipped(norm, 1.0))
    changes = torch.cat([master.detach() for master in trained.masters])
    assert changes.norm().item() == pytest.approx(1.0)
    assert changes[0].item() == pytest.approx(-3 / norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_makes_the_steps_of_pytorch(dtype: torch.dtype) -> None:
    """AdamW with decay and clipping over sizes that are no whole registers or pieces, and a weight that has no gradient at times."""
    found = []
    for own in (True, False):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(*shape).to(dtype)) for shape in [(70001,), (300, 257), (1, 1), (5,)]]
        trained = optim.Trained([(str(index), weight) for index, weight in enumerate(weights)])
        optimizer = optim.build("adamw", trained, 0.01, 0.1)
        optim.rehearse(optimizer, trained)
        for count in range(6):
            for weight in weights[: 3 + count % 2]:
                (weight.float() * torch.randn(weight.shape)).sum().backward()
            if own:
                norm = optim.norm(trained)
                optim.step(optimizer, trained, optim.clipped(norm, 1.0))
            else:
                norm = float(torch.nn.utils.get_total_norm(trained.gradients()))
                torch._foreach_mul_(trained.gradients(), optim.clipped(norm, 1.0))
                optimizer.step()
                trained.write_back()
            trained.clear()
        found.append((norm, [state["step"].item() for state in optimizer.state.values()], trained.masters, weights))
    (norm, steps, masters, own_weights), (norm_2, steps_2, masters_2, _) = found
    assert norm == pytest.approx(norm_2, rel=1e-5)
    assert steps == steps_2 == [6.0, 6.0, 6.0, 3.0]
    for one, other in zip(masters, masters_2, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
    assert all(torch.equal(weight, master.to(dtype)) for weight, master in zip(own_weights, masters, strict=True))


def codes(advice: list[events.Advice]) -> list[str]:
    return [piece.code for piece in advice]


def test_advice() -> None:
    rising = Watch()
    given = [
        code
        for step, loss in enumerate([3.0, 2.0, 2.1, 2.2, 2.3, 2.4])
        for code in codes(rising.saw_eval(step, loss)[1])
    ]
    assert given == ["overfitting"]
    assert (rising.best_step, rising.best, rising.waited) == (1, 2.0, 4)
    falling = Watch()
    for step, loss in enumerate([3.0, 2.5, 2.0, 1.5]):
        assert falling.saw_eval(step, loss) == (True, [])
    assert codes(falling.saw_end(3)) == ["still_learning"]
    worse = Watch()
    for step, loss in enumerate([3.0, 3.1, 3.05]):
        worse.saw_eval(step, loss)
    assert codes(worse.saw_end(2)) == ["no_improvement"]
    diverging = Watch()
    told = [code for step in range(1, 40) for code in codes(diverging.saw_step(step, 1.0 if step < 12 else 9.0, 5, 40))]
    assert told == ["diverging"]


def test_a_watch_survives_a_checkpoint() -> None:
    watch = Watch()
    watch.saw_step(1, 2.0, 10, 5)
    watch.saw_eval(1, 2.5)
    assert Watch.from_json(watch.as_json()) == watch


def test_layout_follows_the_memory() -> None:
    config = SimpleNamespace(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536
    )
    shape = {
        "path": "packed",
        "weights": 135_000_000 * 4,
        "trainable": 5_000_000,
        "width": 4,
        "longest": 700,
        "step": 4000,
        "device": "cpu",
    }
    plenty = memory.lay_out(config, **shape, free=32 << 30, switch="auto")
    tight = memory.lay_out(config, **shape, free=6 << 30, switch="auto")
    tiny = memory.lay_out(config, **shape, free=3 << 30, switch="auto")
    assert (plenty.tokens_per_row, plenty.checkpointing) == (2304, False)
    assert 700 <= tight.tokens_per_row < 2304
    assert tight.expected < 6 << 30
    assert (tiny.tokens_per_row >= 700, tiny.checkpointing) == (True, True)
    assert memory.lay_out(config, **shape, free=32 << 30, switch="on").checkpointing
    fast = memory.lay_out(config, **{**shape, "path": "fast"}, free=6 << 30, switch="auto")
    assert (fast.tokens_per_row, fast.checkpointing) == (2304, False), "layers computed here keep less"
    assert fast.expected < tight.expected
    assert not memory.lay_out(config, **shape, free=3 << 30, switch="off").checkpointing


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_a_rehearsed_optimizer_makes_the_same_steps(name: str) -> None:
    """All its state is there before the first step, and nothing else is changed by that."""
    found = []
    for rehearsed in (False, True):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.randn(4))]
        trained = optim.Trained([("w", weights[0]), ("b", weights[1])])
        optimizer = optim.build(name, trained, 0.05, 0.1)
        if rehearsed:
            before = [weight.detach().clone() for weight in weights]
            optim.rehearse(optimizer, trained)
            assert all(torch.equal(one, other) for one, other in zip(before, weights, strict=True))
            assert len(optimizer.state) == 2
            assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]
            assert not trained.gradients()
        for _ in range(5):
            (weights[0] + weights[1]).square().mean().backward()
            optim.step(optimizer, trained)
            trained.clear()
            kept = {id(tensor) for state in optimizer.state.values() for tensor in state.values()}
        if rehearsed:
            optim.rehearse(optimizer, trained)
            assert {id(tensor) for state in optimizer.state.values() for tensor in state.values()} == kept
        found.append([weight.detach().clone() for weight in weights])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_rehearsal_without_memory_leaves_no_half_of_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = optim.Trained(
        [("w", torch.nn.Parameter(torch.randn(6, 4))), ("b", torch.nn.Parameter(torch.randn(4, 4)))]
    )
    optimizer = optim.build("adafactor", trained, 0.05, 0.0)
    own, calls = optim.Adafactor._scaled, iter([True, False])

    def short(grad: torch.Tensor, state: dict[str, object], keep: float) -> torch.Tensor:
        if not next(calls):
            raise MemoryError
        return own(grad, state, keep)

    monkeypatch.setattr(optim.Adafactor, "_scaled", staticmethod(short))
    with pytest.raises(MemoryError):
        optim.rehearse(optimizer, trained)
    assert not optimizer.state
    assert not trained.gradients()
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_memory_is_touched_beforehand_only_where_it_pays() -> None:
    weights = 40 << 20
    assert memory.touch(weights, free=100 * weights, cores=1) is None
    assert memory.touch(1 << 20, free=100 * weights, cores=2) is None
    assert memory.touch(weights, free=7 * weights, cores=2) is None
    touching = memory.touch(weights, free=8 * weights, cores=2)
    if sys.platform == "linux":
        assert touching is not None
        touching.join(timeout=30)
        assert not touching.is_alive()
