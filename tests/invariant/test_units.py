"""Layers on matrix units ≡ layers without: the loss and all gradients in bfloat16, as near to float32's as without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from afina.engine import lora, model, native, optim
from afina.engine.batches import Item, lay_end_to_end

LENGTHS = (5, 70, 1, 301, 9, 190)  # 576 tokens: more than are computed at once, by one thread or by two

pytestmark = pytest.mark.skipif(not native.has_units(), reason="this processor has no matrix units")


def items() -> list[Item]:
    random = torch.Generator().manual_seed(1)
    draw = [torch.randint(3, 256, (length,), generator=random, dtype=torch.int32) for length in LENGTHS]
    return [Item(ids, torch.arange(len(ids)) % 3 > 0) for ids in draw]


TARGETS = {"lora": ["all-linear"], "some": ["v_proj", "up_proj", "down_proj"], "one": ["k_proj"], "out": ["o_proj"]}
RANKS = {"lora": 4, "some": 20, "one": 40, "out": 16}


def gradients(folder: Path, method: str, dtype: torch.dtype) -> tuple[float, Tensor]:
    """The loss and all gradients, end to end; method: a key of TARGETS, "full" (as in a run: with masters), or "rounded" (without)."""
    network: Any = model.load(folder, torch.float32, torch.device("cpu"))
    if method in TARGETS:
        torch.manual_seed(3)
        rank, targets = RANKS[method], TARGETS[method]
        network = lora.attach(network, rank=rank, alpha=2 * rank, dropout=0.0, targets=targets).get_base_model()
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    else:
        network.requires_grad_(True)
    network = network.to(dtype)
    if method == "full":
        optim.Trained(network.named_parameters())
    fast = model.Network(network)
    assert fast.path == "fast"
    loss = fast.backward(lay_end_to_end(items()), 0.01)
    wide = torch.float32 if method == "full" else dtype
    assert method in TARGETS or all(weight.grad.dtype == wide for weight in network.parameters())
    found = [weight.grad.flatten().double() for weight in network.parameters() if weight.grad is not None]
    return loss, torch.cat(found)


@pytest.mark.parametrize("method", [*TARGETS, "full", "rounded"])
def test_units_change_nothing_but_rounding(family_model: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, wanted = gradients(family_model, method, torch.float32)
    with_units = gradients(family_model, method, torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(native, "has_units", lambda: False)
        without = gradients(family_model, method, torch.bfloat16)
    assert with_units[0] == pytest.approx(loss, rel=5e-3)
    errors = [float((each[1] - wanted).norm() / wanted.norm()) for each in (with_units, without)]
    # gradients of random adapters are small sums of large terms, so that rounding shows by chance
    assert errors[0] <= (2.0 if method in TARGETS else 1.1) * errors[1] + 1e-3, errors


@pytest.mark.parametrize("method", ["lora", "full"])
def test_how_the_work_is_shared_out_changes_nothing(family_model: Path, method: str) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients(family_model, method, torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in found[1:]:
        assert loss == found[0][0]
        assert torch.equal(gradient, found[0][1])
