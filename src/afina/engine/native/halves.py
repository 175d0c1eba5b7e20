"""Half a layer in one call (`halves.h`), a product with weights and LoRA's share of it (`large.h`, `learned.h`), and the gradient of a
weight (`weights.h`), on matrix units.

The structures here are those of the C sources, field by field. Everything is bfloat16 unless it says otherwise. Knows nothing of layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from afina.engine.native import UNITS_TAKE
from afina.engine.native.adapters import Learned
from afina.engine.native.build import library
from afina.engine.native.calls import address, call

__all__ = [
    "Factor",
    "Others",
    "feed_forward",
    "feed_forward_backward",
    "first_half",
    "first_half_backward",
    "in_rows",
    "project",
    "project_backward",
    "weight_gradient",
]


class Factor(ctypes.Structure):
    """x → x · matrix + z · up (+ bias), z = x · downᵀ; weight: the matrix (depth, width) or, `turned`, its transpose; across and along:
    down and up as `weave_both` gives them; inputs and ranks: where they are not zeros, as `spans` gives it. The tensors must live as long
    as this does."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "across", "along", "inputs", "ranks")),
        *((name, ctypes.c_int64) for name in ("depth", "width", "rank", "turned")),
    )
    depth: int
    width: int
    rank: int

    @classmethod
    def of(
        cls,
        weight: Tensor,
        turned: bool,
        down: tuple[Tensor, Tensor] | None = None,
        up: tuple[Tensor, Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> Factor:
        """Of tensors: down is across and inputs, up is along and ranks."""
        depth, width = reversed(weight.shape) if turned else weight.shape
        (across, inputs), (along, ranks) = down or (None, None), up or (None, None)
        rank = 0 if across is None else across.shape[0]
        return cls(*map(address, (weight, bias, across, along, inputs, ranks)), depth, width, rank, turned)


class _Norm(ctypes.Structure):
    _fields_ = (("scale", ctypes.c_void_p), ("inverse", ctypes.c_void_p), ("eps", ctypes.c_float))


class _Result(ctypes.Structure):
    _fields_ = (("rounded", ctypes.c_void_p), ("wide", ctypes.c_void_p), ("add", ctypes.c_int64))


class _Wanted(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("h", "d_h", "between", "d_gate_up"))


class Others(NamedTuple):
    """What the gradients of other parameters are made of: what came out of the norm, and its gradient; of a feed-forward also
    act(gate) · up and the gradients of gates and ups, both in blocks, each woven."""

    h: Tensor
    d_h: Tensor
    between: Tensor | None = None
    d_gate_up: Tensor | None = None


def project(x: Tensor, factor: Factor, add: Tensor | None = None, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (T, depth) → y (T, width) (+ `add`), in `out` where given, and z (T, rank)."""
    y = x.new_empty(x.shape[0], factor.width) if out is None else out
    z = x.new_empty(x.shape[0], factor.rank)
    call(library(), "project", x, factor, add, None, None, z, y, x.shape[0])
    return y, z


def project_backward(dy: Tensor, factor: Factor, x: Tensor, learned: Learned) -> Tensor:
    """Backward of `project`: the gradient of x, and what is `learned`. factor: the product's, the other way."""
    dx, dz = torch.empty_like(x), x.new_empty(x.shape[0], factor.rank)
    call(library(), "project", dy, factor, None, learned, x, dz, dx, x.shape[0])
    return dx


Turn = tuple[Tensor, Tensor, int, int]
"""cos and sin (T, 1, size / 2) of the positions, how many heads from the first on are turned by them, and the size of each."""


def first_half(
    x: Tensor, scale: Tensor, eps: float, factor: Factor, turn: Turn, out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The product of norm(x) with its heads turned; z; and 1 / rms (T, 1) of x, float32. scale: float32."""
    cos, sin, heads, size = turn
    tokens = x.shape[0]
    inverse = torch.empty(tokens, 1, dtype=torch.float32)
    y = x.new_empty(tokens, factor.width) if out is None else out
    z = x.new_empty(tokens, factor.rank)
    call(library(), "first_half", x, _norm(scale, inverse, eps), factor, cos, sin, z, y, tokens, heads, size)
    return y, z, inverse


def first_half_backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    inverse: Tensor,
    factor: Factor,
    turn: Turn,
    residual: Tensor,
    learned: Learned | None,
    others: bool,
) -> tuple[Tensor, Others | None]:
    """Backward of `first_half`: the gradient of x (with `residual`), what is `learned`, and where asked what others are made of.
    factor: the product's, the other way. `dy` becomes the gradient before the heads were turned."""
    cos, sin, heads, size = turn
    dx, more = torch.empty_like(x), Others(torch.empty_like(x), torch.empty_like(x)) if others else None
    given = dy, x, _norm(scale, inverse), factor, learned, _wanted(more), cos, sin, residual
    call(library(), "first_half_backward", *given, dx, x.shape[0], heads, size)
    return dx, more


def feed_forward(
    x: Tensor, scale: Tensor, eps: float, factors: Sequence[Factor], gelu: bool, gate_up: Tensor, out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + last(act(gate) · up) with gate and up of first(norm(x)), which are put into `gate_up` (T, 2·inner) in blocks;
    both z; and 1 / rms of x. factors: first and last."""
    first, last = factors
    tokens = x.shape[0]
    inverse = torch.empty(tokens, 1, dtype=torch.float32)
    y = torch.empty_like(x) if out is None else out
    z, z_last = x.new_empty(tokens, first.rank), x.new_empty(tokens, last.rank)
    call(library(), "feed_forward", x, _norm(scale, inverse, eps), first, last, z, gate_up, z_last, y, tokens, gelu)
    return y, z, z_last, inverse


def feed_forward_backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    inverse: Tensor,
    factors: Sequence[Factor],
    gelu: bool,
    gate_up: Tensor,
    learned: Sequence[Learned | None],
    others: bool,
) -> tuple[Tensor, Others | None]:
    """Backward of `feed_forward`, with its `gate_up`: the gradient of x, what is `learned`, and where asked what others are made of.
    factors: last and first, the other way, beside which is learned."""
    last, first = factors
    dx, more = torch.empty_like(x), None
    if others:
        between, d_gate_up = x.new_empty(x.shape[0], last.width), torch.empty_like(gate_up)
        more = Others(torch.empty_like(x), torch.empty_like(x), between, d_gate_up)
    given = dy, x, _norm(scale, inverse), last, first, *learned, _wanted(more), gate_up
    call(library(), "feed_forward_backward", *given, dx, x.shape[0], gelu)
    return dx, more


def weight_gradient(dy: Tensor, x: Tensor, into: Tensor, add: bool, woven: tuple[bool, bool]) -> Tensor:
    """dyᵀ · x (outputs, inputs) of dy (T, outputs) and x (T, inputs) into `into`, bfloat16 or float32; only where that is float32 may `add`
    ask for it to be added to what is there. woven: which of dy and x (not both) comes as `Others` has it."""
    turned = woven[0] or (not woven[1] and x.shape[1] < dy.shape[1])
    narrow, wide = (x, dy) if turned else (dy, x)
    given = narrow, narrow.shape[1], wide, wide.shape[1], any(woven), turned
    place = _Result(None, address(into), add) if into.dtype == torch.float32 else _Result(address(into))
    call(library(), "weight_gradient", *given, place, x.shape[0])
    return into


def in_rows(woven: Tensor) -> Tensor:
    """What lies in woven blocks of 32 tokens and numbers (T, width), in rows."""
    tokens, width = woven.shape
    blocks = woven.view(tokens // UNITS_TAKE, width // UNITS_TAKE, UNITS_TAKE // 2, UNITS_TAKE, 2)
    return blocks.permute(0, 2, 4, 1, 3).reshape(tokens, width)


def _wanted(others: Others | None) -> _Wanted | None:
    return None if others is None else _Wanted(*map(address, others))


def _norm(scale: Tensor, inverse: Tensor, eps: float = 0.0) -> _Norm:
    return _Norm(scale.data_ptr(), inverse.data_ptr(), eps)
