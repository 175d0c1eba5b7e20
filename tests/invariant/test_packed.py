"""Packed ≡ one by one ≡ transformers' and PEFT's own forward and loss: the loss and every gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from afina.engine import lora, model
from afina.engine.batches import Item, lay_end_to_end, rows_of

LENGTHS = (5, 23, 1, 40, 9)  # shorter and longer than the sliding window of 16; one token alone


def items(vocabulary: int = 256) -> list[Item]:
    random = torch.Generator().manual_seed(1)
    made = []
    for length in LENGTHS:
        mask = torch.rand(length, generator=random) < 0.6
        mask[0] = False
        made.append(Item(torch.randint(3, vocabulary, (length,), generator=random, dtype=torch.int32), mask))
    return made


def wrapped(folder: Path, fast: bool, rank: int = 4) -> tuple[Any, Any]:
    plain = model.load(folder, torch.float32, torch.device("cpu"))
    torch.manual_seed(3)
    peft = lora.attach(plain, rank=rank, alpha=8, dropout=0.0, targets=["all-linear"], fast=fast)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return peft, peft.get_base_model()


def gradients(network: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


def transformers_loss(network: Any, examples: list[Item]) -> torch.Tensor:
    """What transformers and PEFT compute themselves, one example at a time, summed over learned tokens."""
    total = torch.zeros(())
    for item in examples:
        ids = item.ids.long()[None]
        labels = torch.where(item.mask, item.ids.long(), -100)[None]
        count = int(item.mask.sum())
        if count:
            total = total + network(input_ids=ids, labels=labels, use_cache=False).loss * count
    return total


def assert_same(given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert given.keys() == wanted.keys()
    assert given
    for name, gradient in wanted.items():
        difference = (given[name] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm() + 1e-7, (name, float(difference), float(gradient.norm()))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_packed_is_transformers_own(family_model: Path, method: str) -> None:
    examples = items()
    if method == "lora":
        _, reference = wrapped(family_model, fast=False)
        _, fast = wrapped(family_model, fast=True)
    else:
        reference = model.load(family_model, torch.float32, torch.device("cpu")).requires_grad_(True)
        fast = model.load(family_model, torch.float32, torch.device("cpu")).requires_grad_(True)
    expected = transformers_loss(reference, examples)
    expected.backward()

    network = model.Network(fast)
    assert network.path == "fast"
    loss = network.backward(lay_end_to_end(examples), 1.0)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same(gradients(fast), gradients(reference))


def test_the_padding_s_own_word_is_not_trained(family_model: Path) -> None:
    """As in transformers, where a table of words has one that is for padding, although texts may have it too."""
    networks = [model.load(family_model, torch.float32, torch.device("cpu")).requires_grad_(True) for _ in "ab"]
    examples = items()
    word = int(examples[3].ids[7])
    for network in networks:
        network.get_input_embeddings().padding_idx = word
    reference, fast = networks
    transformers_loss(reference, examples).backward()
    model.Network(fast).backward(lay_end_to_end(examples), 1.0)
    assert_same(gradients(fast), gradients(reference))


def test_packed_is_unpacked(family_model: Path) -> None:
    examples = items()
    _, together = wrapped(family_model, fast=True)
    _, apart = wrapped(family_model, fast=True)
    whole = model.Network(together).backward(lay_end_to_end(examples), 0.5)
    network = model.Network(apart)
    single = sum(network.backward(row, 0.5) for row in rows_of(examples, 1))
    assert whole == pytest.approx(single, rel=1e-5)
    assert_same(gradients(together), gradients(apart))


def test_reference_path_is_the_same_loss(family_model: Path) -> None:
    examples = items()
    _, slow = wrapped(family_model, fast=False)
    _, fast = wrapped(family_model, fast=True)
    network = model.Network(slow, best="reference")
    assert network.path == "reference"
    row = lay_end_to_end(examples)
    assert network.backward(row, 1.0) == pytest.approx(model.Network(fast).backward(row, 1.0), rel=1e-5)
    assert_same(gradients(fast), gradients(slow))


def test_checkpointed_activations_change_nothing(family_model: Path) -> None:
    row = lay_end_to_end(items())
    found = []
    for again in (False, True):
        _, base = wrapped(family_model, fast=True)
        base.train()
        network = model.Network(base)
        if again:
            network.checkpoint_activations()
        found.append((network.backward(row, 1.0), gradients(base)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert_same(found[1][1], found[0][1])


def test_a_head_with_an_adapter(family_model: Path) -> None:
    plain = model.load(family_model, torch.float32, torch.device("cpu"))
    lora.attach(plain, rank=2, alpha=4, dropout=0.0, targets=["lm_head", "q_proj"])
    for name, weight in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    expected = transformers_loss(plain, items())
    expected.backward()
    wanted = gradients(plain)
    plain.zero_grad()
    loss = model.Network(plain).backward(lay_end_to_end(items()), 1.0)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same(gradients(plain), wanted)
