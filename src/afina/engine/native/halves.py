"""Half a layer in one call (`halves.h`), and a product with weights and LoRA's share of it (`large.h`), on matrix units.

The structures here are those of the C sources, field by field. Everything is bfloat16 unless it says otherwise. Knows nothing of layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from afina.engine.native.build import library
from afina.engine.native.calls import address, call

__all__ = [
    "KEPT_ROWS",
    "Factor",
    "Through",
    "feed_forward",
    "feed_forward_backward",
    "first_half",
    "first_half_backward",
    "in_rows",
    "project",
]
KEPT_ROWS = 64
"""What halves of layers take tokens in multiples of."""


class Factor(ctypes.Structure):
    """x → x · matrix + z · up (+ bias), z = x · downᵀ; weight: the matrix (depth, width) or, `turned`, its transpose; across and along:
    down and up as `weave_both` gives them. The tensors must live as long as this does."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "across", "along")),
        *((name, ctypes.c_int64) for name in ("depth", "width", "rank", "turned")),
    )
    depth: int
    width: int
    rank: int

    @classmethod
    def of(
        cls, weight: Tensor, turned: bool, across: Tensor | None, along: Tensor | None, bias: Tensor | None = None
    ) -> Factor:
        """Of tensors; across has a row a rank."""
        depth, width = reversed(weight.shape) if turned else weight.shape
        rank = 0 if across is None else across.shape[0]
        return cls(*map(address, (weight, bias, across, along)), depth, width, rank, turned)


class _Norm(ctypes.Structure):
    _fields_ = (("scale", ctypes.c_void_p), ("inverse", ctypes.c_void_p), ("eps", ctypes.c_float))


class Through(NamedTuple):
    """What backward through a product and the norm before it gives: the gradients of z, of what came out of the norm, and of what went
    into it (with the residual's); and what came out of the norm."""

    dz: Tensor
    d_h: Tensor
    dx: Tensor
    h: Tensor


def project(x: Tensor, factor: Factor, add: Tensor | None = None, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (T, depth) → y (T, width) (+ `add`), in `out` where given, and z (T, rank)."""
    y = x.new_empty(x.shape[0], factor.width) if out is None else out
    z = x.new_empty(x.shape[0], factor.rank)
    call(library(), "project", x, factor, add, z, y, x.shape[0])
    return y, z


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
    dy: Tensor, x: Tensor, scale: Tensor, inverse: Tensor, factor: Factor, turn: Turn, residual: Tensor
) -> Through:
    """Backward of `first_half`; factor: the product's, the other way. `dy` becomes the gradient before the heads were turned."""
    cos, sin, heads, size = turn
    through = _through(x, factor)
    norm, order = _norm(scale, inverse), _order(through)
    call(library(), "first_half_backward", dy, x, norm, factor, cos, sin, residual, *order, x.shape[0], heads, size)
    return through


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
    dy: Tensor, x: Tensor, scale: Tensor, inverse: Tensor, factors: Sequence[Factor], gelu: bool, gate_up: Tensor
) -> tuple[Through, Tensor, Tensor, Tensor]:
    """Backward of `feed_forward`, with its `gate_up`; factors: last and first, the other way. What comes through the first product; then
    the gradients of the second z and of gates and ups (T, 2·inner), and act(gate) · up (T, inner), the latter two in blocks."""
    last, first = factors
    through, tokens = _through(x, first), x.shape[0]
    dz_last, between = x.new_empty(tokens, last.rank), x.new_empty(tokens, last.width)
    d_gate_up = x.new_empty(tokens, first.depth)
    found = dz_last, between, d_gate_up, *_order(through)
    call(library(), "feed_forward_backward", dy, x, _norm(scale, inverse), last, first, gate_up, *found, tokens, gelu)
    return through, dz_last, d_gate_up, between


def in_rows(blocked: Tensor) -> Tensor:
    """What lies in blocks of 64 tokens and 32 numbers (T, width), in rows."""
    tokens, width = blocked.shape
    return blocked.view(tokens // KEPT_ROWS, width // 32, KEPT_ROWS, 32).transpose(1, 2).reshape(tokens, width)


def _through(x: Tensor, factor: Factor) -> Through:
    return Through(x.new_empty(x.shape[0], factor.rank), *(torch.empty_like(x) for _ in range(3)))


def _order(through: Through) -> tuple[Tensor, ...]:
    return through.dz, through.h, through.d_h, through.dx


def _norm(scale: Tensor, inverse: Tensor, eps: float = 0.0) -> _Norm:
    return _Norm(scale.data_ptr(), inverse.data_ptr(), eps)
