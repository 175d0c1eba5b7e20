"""The table of words in training: which of its rows a text reads, and their gradients, added where the table's own lies.

One of the table's size would have to be made, widened and added, of which all but a few thousand rows are zeros. Knows nothing of layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Rows(torch.autograd.Function):
    """The rows `ids` (T,) of a table, (T, d). anchor: what autograd follows in place of the table, so that the gradient from a head
    which shares it is there first."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, table: nn.Embedding, ids: Tensor) -> Tensor:
        ctx.table, ctx.ids = table, ids
        return table.weight.detach()[ids]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        weight, unlearned = ctx.table.weight, ctx.table.padding_idx
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight, dtype=weight.grad_dtype)
        of_rows = grad_outputs[0].to(weight.grad.dtype)
        if unlearned is not None:
            of_rows = of_rows.masked_fill((ctx.ids == unlearned)[:, None], 0.0)
        weight.grad.index_add_(0, ctx.ids, of_rows)
        return None, None, None


def look_up(table: Any, ids: Tensor) -> Tensor:
    """ids (T,) → (T, d) of a model's `table`: by the table itself where it is not trained, or of a kind that is not known here."""
    if not (torch.is_grad_enabled() and _is_trained(table)):
        looked: Tensor = table(ids[None])[0]
        return looked
    rows: Tensor = _Rows.apply(torch.empty(0, requires_grad=True), table, ids)  # type: ignore[no-untyped-call]
    return rows if type(table) is nn.Embedding else rows * table.embed_scale.to(rows.dtype)


def _is_trained(table: Any) -> bool:
    """Whether it is trained, and plain or Gemma's, whose rows are scaled."""
    known = type(table) is nn.Embedding or type(table).__name__.endswith("TextScaledWordEmbedding")
    return known and table.weight.requires_grad and not table.sparse and table.max_norm is None
