"""LoRA's products: between what has a row a token and a rank of a few dozen. Little to compute and much to read.

On matrix units by kernels of ours that read it once; else by PyTorch's products. Knows nothing of layers or adapters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afina.engine import native


def padded(rank: int, dtype: torch.dtype) -> int:
    """How many rows a matrix should have for `rank` of them to mean something, the others being zero."""
    return rank + -rank % native.UNITS_TAKE if dtype == torch.bfloat16 and native.has_units() else rank


class Thin:
    """A matrix (rank, width); `changed` is to be called after its numbers were."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        whole = all(each % native.UNITS_TAKE == 0 for each in matrix.shape)
        self._by_units = matrix.dtype == torch.bfloat16 and whole and native.has_units()
        if self._by_units:
            self._across, self._along = torch.empty_like(matrix), torch.empty_like(matrix)

    def changed(self) -> None:
        """Take in new numbers."""
        if self._by_units:
            native.weave_both(self.matrix, self._across, self._along)

    def to_rank(self, x: Tensor) -> Tensor:
        """x (T, width) · matrixᵀ → (T, rank)."""
        return native.to_rank(x, self._across, self.matrix.shape[0]) if self.serves(x) else x @ self.matrix.t()

    def add_from_rank(self, z: Tensor, y: Tensor) -> None:
        """y (T, width) += z (T, rank) · matrix."""
        if self.serves(y) and z.is_contiguous():
            native.from_rank(z, self._along, y)
        else:
            y.addmm_(z, self.matrix)

    def serves(self, tokens: Tensor) -> bool:
        """Whether the kernels do."""
        return self._by_units and tokens.shape[0] % native.UNITS_TAKE == 0 and tokens.is_contiguous()


def over_tokens(z: Tensor, x: Tensor) -> Tensor:
    """The gradient of a matrix (rank, width), zᵀ · x over all tokens: z (T, rank), x (T, width)."""
    whole = all(each % native.UNITS_TAKE == 0 for each in (*z.shape, x.shape[1]))
    if native.has_units() and whole and native.serves(z, x) and z.dtype == torch.bfloat16:
        return native.over_tokens(z, x)
    return z.t() @ x
