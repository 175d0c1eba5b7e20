"""Products of what has a row a token: with a layer's weights and LoRA's share of them, and with a rank of a few dozen.

On matrix units by kernels of ours that read it once; else by PyTorch's products. Knows nothing of layers or adapters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afina.engine import native
from afina.engine.native import halves
from afina.engine.native.halves import Factor, Gradients


def padded(rank: int, dtype: torch.dtype) -> int:
    """How many rows a matrix should have for `rank` of them to mean something, the others being zero."""
    return rank + -rank % native.UNITS_TAKE if dtype == torch.bfloat16 and native.has_units() else rank


class Thin:
    """A matrix (rank, width); `changed` is to be called after its numbers were."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.across: Tensor | None = None
        self.along: Tensor | None = None
        if _on_units(matrix):
            self.across, self.along = torch.empty_like(matrix), torch.empty_like(matrix)

    def changed(self) -> None:
        """Take in new numbers."""
        if self.across is not None and self.along is not None:
            native.weave_both(self.matrix, self.across, self.along)

    def to_rank(self, x: Tensor) -> Tensor:
        """x (T, width) · matrixᵀ → (T, rank)."""
        return x @ self.matrix.t()


class Product:
    """x (T, in) → x · weightᵀ (x · weight where not `turned`) + z · up (+ bias), and z = x · downᵀ (T, rank), None without `down`.

    factor: what the kernels of matrix units take; None where they do not.
    """

    def __init__(
        self, weight: Tensor, turned: bool, down: Thin | None = None, up: Thin | None = None, bias: Tensor | None = None
    ) -> None:
        self._weight, self._down, self._up, self._bias = weight.t() if turned else weight, down, up, bias
        self.factor: Factor | None = None
        if _on_units(weight) and (down is None or down.across is not None):
            thin = (None, None) if down is None or up is None else (down.across, up.along)
            self.factor = Factor.of(weight, turned, *thin, bias)

    def __call__(self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The result (+ `add`), in `out` where given, and z."""
        if self.factor is not None and _on_units(x):
            y, few = halves.project(x, self.factor, add, out)
            return y, None if self._down is None else few
        y = torch.mm(x, self._weight, out=out) if add is None else torch.addmm(add, x, self._weight, out=out)
        if self._bias is not None:
            y += self._bias
        if self._down is None or self._up is None:
            return y, None
        z = self._down.to_rank(x)
        return y.addmm_(z, self._up.matrix), z

    def learn(self, dy: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Gradients] | None:
        """On the way back (this is the product dy → dx): dx, and the gradients of LoRA's matrices, made in the same pass; None where
        they are to be made by themselves."""
        if self.factor is None or not (self.factor.rank and _on_units(dy) and _on_units(x)):
            return None
        return halves.project_backward(dy, self.factor, x, z)


def over_tokens(z: Tensor, x: Tensor) -> Tensor:
    """The gradient of a matrix (rank, width), zᵀ · x over all tokens: z (T, rank), x (T, width)."""
    return native.over_tokens(z, x) if _on_units(z) and _on_units(x) else z.t() @ x


def _on_units(tensor: Tensor) -> bool:
    """Whether matrix units take it: whole blocks of bfloat16."""
    whole = all(each % native.UNITS_TAKE == 0 for each in tensor.shape)
    return whole and tensor.dtype == torch.bfloat16 and native.has_units() and native.serves(tensor)
