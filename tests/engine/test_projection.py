"""Layers that read the same input as one product, with LoRA beside or merged: what autograd finds, and no second copy of the weights."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from afina.engine import products
from afina.engine.projection import Projection

INPUTS, SIZES = 24, {"one": 16, "two": 8, "three": 8}


def layers(targets: list[str], bias: bool) -> list[Any]:
    """Linear layers of SIZES, those of `targets` with an adapter whose B is no longer zero."""
    torch.manual_seed(0)
    parts = nn.ModuleDict({name: nn.Linear(INPUTS, size, bias=bias) for name, size in SIZES.items()})
    parts.requires_grad_(False)
    if targets:
        peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets), parts)
        for name in targets:
            nn.init.normal_(parts[name].lora_B["default"].weight)
    return list(parts.values())


@pytest.mark.parametrize("tokens", [1, 7, 20, 40], ids=["by one", "beside", "merged one way", "merged"])
@pytest.mark.parametrize("targets", [[], ["two"], ["one", "two", "three"]], ids=len)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_a_projection_is_its_layers(tokens: int, targets: list[str], bias: bool) -> None:
    parts = layers(targets, bias)
    x = torch.randn(tokens, INPUTS, requires_grad=True)
    wanted = torch.cat([part(x) for part in parts], dim=1)
    dy = torch.randn_like(wanted)
    own = Projection(parts)
    own.refresh()
    before = own.weight.clone()
    grads = torch.autograd.grad(wanted, [x, *own.parameters], dy)
    with torch.no_grad():
        y, z = own.forward(x.detach())
        dx, of_parameters = own.backward(dy, x.detach(), z)
        add, out = torch.randn_like(wanted), torch.empty_like(wanted)
        evaluated, _ = own.forward(x.detach(), add=add, keep=False, out=out)
    close(y, wanted)
    close(evaluated, wanted + add)
    assert evaluated.data_ptr() == out.data_ptr()
    for found, right in zip([dx, *of_parameters], grads, strict=True):
        close(found, right)
    assert torch.equal(own.weight, before), "the base stays as it is"


def test_weights_are_held_once() -> None:
    """What is merged is gone after its product."""
    parts = layers(["one", "two", "three"], bias=False)
    own = Projection(parts)
    own.refresh()
    with torch.no_grad():
        own.forward(torch.randn(40, INPUTS))
    held = [each for each in vars(own).values() if isinstance(each, Tensor)]
    assert sum(each.numel() for each in held) == INPUTS * sum(SIZES.values())
    assert parts[1].base_layer.weight.data_ptr() == own.weight[SIZES["one"] :].data_ptr()


def test_it_merges_where_that_moves_less_memory() -> None:
    assert not products.pays_to_merge(torch.empty(24, 24))
    assert products.pays_to_merge(torch.empty(25, 24))


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
