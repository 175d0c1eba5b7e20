"""Gradients that lie where activations were: what is lent, and that further rows of a step do not write over them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afina.engine import model
from afina.engine.batches import Item, Row, lay_end_to_end
from afina.engine.model import Network
from afina.engine.rooms import ALIGNED, Room, Spare

TOKENS = 320


def row(seed: int) -> Row:
    random = torch.Generator().manual_seed(seed)
    lengths = (5, 200, TOKENS - 205)
    ids = [torch.randint(3, 256, (length,), generator=random, dtype=torch.int32) for length in lengths]
    return lay_end_to_end([Item(each, torch.rand(len(each), generator=random) < 0.6) for each in ids])


def full(folder: Path) -> Network:
    """Ready to train all weights, with rooms for one row."""
    network = Network(model.load(folder, torch.float32, torch.device("cpu")).requires_grad_(True))
    network.reserve(TOKENS)
    return network


def gradients(network: Network) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in network.model.named_parameters() if weight.grad is not None}


def test_what_is_lent_lies_in_rooms_and_apart() -> None:
    room, spare = Room(8), Spare()
    block = room.take("y", torch.zeros(8, 1), 100)
    spare.give(room)
    taken = [spare.take(shape, torch.float32) for shape in [(3, 5), (7,), (2, 2, 2)]]
    for number, tensor in enumerate(taken):
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % ALIGNED == block.data_ptr() % ALIGNED
        assert tensor.untyped_storage().data_ptr() == block.untyped_storage().data_ptr()
        tensor.fill_(number)
    assert [tensor.unique().tolist() for tensor in taken] == [[0], [1], [2]]
    larger = spare.take((30, 30), torch.float32)
    assert larger.untyped_storage().data_ptr() != block.untyped_storage().data_ptr()


def test_gradients_move_out_before_a_room_is_used_again() -> None:
    room, spare, weight, other = Room(4), Spare(), torch.zeros(3, 4), torch.zeros(2)
    block = room.take("y", torch.zeros(4, 1), 10)
    spare.give(room)
    weight.grad, other.grad = spare.take((3, 4), torch.float32).fill_(2.0), torch.ones(2)
    stays = other.grad.data_ptr()
    spare.back([weight, other])
    block.fill_(9.0)
    assert weight.grad.eq(2.0).all()
    assert other.grad.data_ptr() == stays
    assert spare.take((2,), torch.float32).untyped_storage().data_ptr() != block.untyped_storage().data_ptr()


def test_a_layer_s_gradients_lie_in_the_rooms_of_the_next(family_model: Path) -> None:
    network = full(family_model)
    network.backward(row(1), 1.0)
    assert network._decoder is not None
    rooms = {block.untyped_storage().data_ptr() for room in network._decoder._rooms.values() for block in room.blocks}
    first = {
        name: gradient.untyped_storage().data_ptr() in rooms
        for name, gradient in gradients(network).items()
        if "layers.0." in name and "proj.weight" in name
    }
    assert len(first) == 7
    assert all(first.values()), first


@pytest.mark.parametrize("again", [False, True])
def test_gradients_of_several_rows_add_up(family_model: Path, again: bool) -> None:
    """Each row's, computed alone by a network without rooms for it, are those that the others are added to."""
    network, alone = full(family_model), full(family_model)
    alone.reserve(1)
    if again:
        network.checkpoint_activations()
    sums: dict[str, torch.Tensor] = {}
    for seed in (1, 2, 3):
        network.backward(row(seed), 1.0)
        alone.backward(row(seed), 1.0)
        for name, gradient in gradients(alone).items():
            sums[name] = sums[name] + gradient if name in sums else gradient.clone()
        alone.model.zero_grad()
    found = gradients(network)
    assert found.keys() == sums.keys()
    for name, gradient in sums.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
