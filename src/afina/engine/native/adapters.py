"""LoRA's matrices beside a product, as the kernels of `learned.h` take them and give their gradients. Knows nothing of layers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from afina.engine.native.build import library
from afina.engine.native.calls import address, call

__all__ = ["Beside", "Learned", "learned", "spans", "take"]
RANKS_TOGETHER, COLUMNS_TOGETHER = 16, 32


class Beside(NamedTuple):
    """LoRA beside one layer of a product: A (r, in), B (out, r), s; its place among all ranks and among all outputs."""

    a: Tensor
    b: Tensor
    scaling: float
    ranks: slice
    outputs: slice


class _Adapter(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b")),
        *((name, ctypes.c_int64) for name in ("rank", "first", "outputs", "begin")),
        ("scale", ctypes.c_float),
    )


class Learned(ctypes.Structure):
    """z (T, Σ r) of forward, and the places of the gradients. The tensors must live as long as this does."""

    _fields_ = (("z", ctypes.c_void_p), ("each", ctypes.POINTER(_Adapter)), ("count", ctypes.c_int64))


def learned(adapters: Sequence[Beside], z: Tensor) -> tuple[Learned, list[Tensor]]:
    """What a product's way back is given to make the gradients of `adapters`; and these, dA and dB of each, float32."""
    found = [torch.empty(each.shape, dtype=torch.float32) for own in adapters for each in (own.a, own.b)]
    return _of(adapters, z, found), found


def take(adapters: Sequence[Beside], down: Sequence[Tensor], up: Sequence[Tensor]) -> None:
    """The numbers of `adapters` (float32) into all A (Σ r, in) and all s·Bᵀ (Σ r, Σ out), each with what `weave_both` makes of it."""
    (rank, inputs), outputs = down[0].shape, up[0].shape[1]
    given = _of(adapters, None, [each for own in adapters for each in (own.a, own.b)])
    call(library(), "take_adapters", given, *down, *up, rank, inputs, outputs)


def spans(matrix: Tensor, places: Sequence[tuple[slice, slice]]) -> tuple[Tensor, Tensor]:
    """Of each 16 ranks of `matrix` (rank, width) the columns, and of each 32 columns the ranks, in which some of `places` (ranks, columns) lie:
    from and up to, int32 (…, 2), in whole 32 and 16; nothing where there are none."""
    rank, width = matrix.shape
    turned = [(columns, ranks) for ranks, columns in places]
    return _spans(places, rank, RANKS_TOGETHER, COLUMNS_TOGETHER), _spans(
        turned, width, COLUMNS_TOGETHER, RANKS_TOGETHER
    )


def _spans(places: Sequence[tuple[slice, slice]], size: int, each: int, other: int) -> Tensor:
    found: list[tuple[int, int]] = [(0, 0)] * (size // each)
    for here, there in places:
        for index in range(here.start // each, -(-here.stop // each)):
            begin, end = there.start // other * other, -(-there.stop // other) * other
            known = found[index]
            found[index] = (min(known[0], begin), max(known[1], end)) if known[1] else (begin, end)
    return torch.tensor(found, dtype=torch.int32)


def _of(adapters: Sequence[Beside], z: Tensor | None, places: Sequence[Tensor]) -> Learned:
    every = (_Adapter * len(adapters))()
    for index, (made, own) in enumerate(zip(every, adapters, strict=True)):
        made.a, made.b = map(address, places[2 * index : 2 * index + 2])
        made.rank, made.first = own.ranks.stop - own.ranks.start, own.ranks.start
        made.outputs, made.begin = own.outputs.stop - own.outputs.start, own.outputs.start
        made.scale = own.scaling
    return Learned(address(z), every, len(adapters))
