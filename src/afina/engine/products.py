"""Products of what has a row a token: with a layer's weights and LoRA's share of them, and with a rank of a few dozen.

On matrix units by kernels of ours that read it once; else by PyTorch's products. Knows nothing of layers or adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from afina.engine import native
from afina.engine.native import halves, steps
from afina.engine.native.adapters import spans
from afina.engine.native.halves import Factor


def padded(rank: int, dtype: torch.dtype) -> int:
    """How many rows a matrix should have for `rank` of them to mean something, the others being zero."""
    return rank + -rank % native.UNITS_TAKE if dtype == torch.bfloat16 and native.has_units() else rank


class Thin:
    """A matrix (rank, width), and woven for both ways where matrix units take it; `changed` is to be called after its numbers were.

    places: (ranks, columns) outside which all its numbers are zeros (by default none are). factors: what the kernels take to go from width
    to rank, and from rank to width.
    """

    def __init__(self, matrix: Tensor, places: Sequence[tuple[slice, slice]] = ()) -> None:
        self.matrix = matrix
        self.woven = (torch.empty_like(matrix), torch.empty_like(matrix)) if on_units(matrix) else None
        self.factors: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        if self.woven:
            rank, width = matrix.shape
            columns, ranks = spans(matrix, places or [(slice(0, rank), slice(0, width))])
            self.factors = (self.woven[0], columns), (self.woven[1], ranks)

    def changed(self) -> None:
        """Take in new numbers."""
        if self.woven:
            native.weave_both(self.matrix, *self.woven)

    def to_rank(self, x: Tensor) -> Tensor:
        """x (T, width) · matrixᵀ → (T, rank)."""
        return x @ self.matrix.t()


class Product:
    """x (T, in) → x · weightᵀ (x · weight where not `turned`) + z · up (+ bias), and z = x · downᵀ (T, rank), None without `down`.

    merged: gives the weight with the share of down and up in it, which pays for many tokens. factor: what the kernels of matrix units take;
    None where they do not.
    """

    def __init__(
        self,
        weight: Tensor,
        turned: bool,
        down: Thin | None = None,
        up: Thin | None = None,
        bias: Tensor | None = None,
        merged: Callable[[], Tensor] | None = None,
    ) -> None:
        self._weight, self._turned, self._down, self._up, self._bias = weight, turned, down, up, bias
        self._merged = merged
        self.factor: Factor | None = None
        if on_units(weight):
            if down is None or up is None:
                self.factor = Factor.of(weight, turned, bias=bias)
            elif down.factors and up.factors:
                self.factor = Factor.of(weight, turned, down.factors[0], up.factors[1], bias)
        self._few = steps.Matrix.of(weight, None, bias) if turned and weight.dtype == torch.float32 else None

    def __call__(
        self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None, keep: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """The result (+ `add`), in `out` where given, and z (or None, where it was not needed and not `keep`)."""
        if self.factor is not None and on_units(x):
            y, few = halves.project(x, self.factor, add, out)
            return y, None if self._down is None else few
        merged = self._merged() if self._merged is not None and pays_to_merge(x) else None
        y = self._multiply(x, self._weight if merged is None else merged, add, out)
        if self._down is None or self._up is None or (merged is not None and not keep):
            return y, None
        z = self._down.to_rank(x)
        return y if merged is not None else y.addmm_(z, self._up.matrix), z

    def _multiply(self, x: Tensor, weight: Tensor, add: Tensor | None, out: Tensor | None) -> Tensor:
        """x · weightᵀ or x · weight, + `add`, + bias."""
        if self._few is not None and out is None and steps.takes(x):
            y = steps.multiply(x.contiguous(), self._few, weight.shape[0])
            return y if add is None else y.add_(add)
        weight = weight.t() if self._turned else weight
        y = torch.mm(x, weight, out=out) if add is None else torch.addmm(add, x, weight, out=out)
        if self._bias is not None:
            y += self._bias
        return y


def pays_to_merge(x: Tensor) -> bool:
    """Whether writing a weight once more moves less memory than going over the results again, all of which are read and written, for
    x (T, in)."""
    tokens, inputs = x.shape
    return tokens > inputs


def over_tokens(z: Tensor, x: Tensor) -> Tensor:
    """The gradient of a matrix (rank, width), zᵀ · x over all tokens: z (T, rank), x (T, width)."""
    return native.over_tokens(z, x) if on_units(z) and on_units(x) else z.t() @ x


def over_all_tokens(
    dy: Tensor, x: Tensor, into: Tensor, add: bool = False, woven: tuple[bool, bool] = (False, False)
) -> Tensor:
    """The gradient of a weight (outputs, inputs), dyᵀ · x, into `into`, in its format or float32, or where `add` onto what is there
    (float32): dy (T, outputs), x (T, inputs), where `woven` as `halves` leaves it."""
    if any(woven) or (on_units(dy) and on_units(x)):
        return halves.weight_gradient(dy, x, into, add, woven)
    if into.dtype != dy.dtype:
        return into.add_(dy.t() @ x) if add else into.copy_(dy.t() @ x)
    return into.addmm_(dy.t(), x) if add else torch.mm(dy.t(), x, out=into)


def on_units(tensor: Tensor) -> bool:
    """Whether matrix units take it: whole blocks of bfloat16."""
    whole = all(each % native.UNITS_TAKE == 0 for each in tensor.shape)
    return whole and tensor.dtype == torch.bfloat16 and native.has_units() and native.serves(tensor)
