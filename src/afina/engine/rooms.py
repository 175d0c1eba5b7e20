"""Memory that is used again from row to row: what layers keep until their backward, and then the gradients of their weights.

What has one size and place does not break the heap into pieces. Knows nothing of layers or adapters.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

ALIGNED = 64
"""Bytes: kernels read whole lines of the cache."""


class Taken:
    """Lives as long as something in a room waits for its backward."""


class Room:
    """Memory for what half a layer keeps until backward, the same for every row of up to `tokens`, and for longer ones made anew."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._blocks: dict[str, Tensor] = {}
        self._taken: weakref.ref[Taken] | None = None

    def begin(self) -> Taken | None:
        """To be held until what is taken from here on is no longer needed; None while somebody else holds it."""
        if self._taken is not None and self._taken() is not None:
            return None
        taken = Taken()
        self._taken = weakref.ref(taken)
        return taken

    def take(self, name: str, like: Tensor, width: int) -> Tensor:
        """(T, width) in the format of `like` (T, …); what was taken under this name before is overwritten."""
        size = like.shape[0] * width
        block = self._blocks.get(name)
        if block is None or block.numel() < size or block.dtype != like.dtype:
            self._blocks.pop(name, None)
            block = self._blocks[name] = like.new_empty(max(like.shape[0], self._tokens) * width)
        return block[:size].view(like.shape[0], width)

    @property
    def blocks(self) -> list[Tensor]:
        """All its memory."""
        return list(self._blocks.values())


class Spare:
    """Rooms whose backward is done, lent to gradients until the next row's forward needs them again.

    Backward comes to the weights of a layer when those after it have their gradients: what these kept lies idle, and is about as
    large. So gradients need no memory of their own, where a step has one row.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._lent: set[int] = set()

    def give(self, room: Room) -> None:
        """Lend out `room` from here on."""
        self._free += [block.view(torch.uint8) for block in room.blocks]

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a contiguous tensor, of its own where none that was given has enough."""
        size = torch.Size(shape).numel() * dtype.itemsize
        for index, block in enumerate(self._free):
            if block.numel() >= size:
                self._free[index] = block[size + -size % ALIGNED :]
                self._lent.add(block.untyped_storage().data_ptr())
                return block[:size].view(dtype).view(*shape)
        return torch.empty(*shape, dtype=dtype)

    def back(self, weights: Iterable[Tensor]) -> None:
        """Rooms are needed: gradients of `weights` that lie in them, because a step has several rows, get memory of their own."""
        if self._lent:
            for weight in weights:
                if weight.grad is not None and weight.grad.untyped_storage().data_ptr() in self._lent:
                    weight.grad = weight.grad.clone()
        self._free.clear()
        self._lent.clear()
