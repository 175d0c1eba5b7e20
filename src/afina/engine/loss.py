"""Cross-entropy that never holds the full scores: chunk by chunk, loss and gradient in the same pass.

With a vocabulary of 49,152 the scores of one row of 2,048 tokens are 400 MB, and an ordinary loss holds them several
times. Here only tokens that are learned reach the output head, some hundreds at a time, and what backward needs (the
gradient of the hidden states, and of the head when it is trained) is computed before the scores are let go. On matrix units, under
a head that is not trained, a kernel holds those of 32 tokens and some words.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from afina.engine import native
from afina.engine.products import over_all_tokens
from afina.engine.shapes import ROUNDED_TO, multiple

SCORES_AT_ONCE = 96_000_000
"""Bytes of scores held at a time, which sets how many tokens a chunk has."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over tokens of -w · log softmax(cap(scale · (h·Wᵀ + b)))[target]; cap(x) = softcap·tanh(x / softcap)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        weights: Tensor | None,
    ) -> Tensor:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        if bias is None and not need_weight and _on_units(hidden, weight):
            losses, grad_hidden = native.loss_of_words(hidden, weight, targets, scale, softcap, need_hidden)
            if weights is not None and grad_hidden is not None:
                grad_hidden *= weights[:, None]
            ctx.grads, ctx.dtypes = (grad_hidden, None, None), (hidden.dtype, None, None)
            return losses.sum() if weights is None else losses @ weights
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.empty_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # kernels work where the scores lie, PyTorch's operators on a copy in float32
        width = weight.element_size() if native.serves(hidden, weight) else 4
        size = max(1, SCORES_AT_ONCE // (weight.shape[0] * width) // ROUNDED_TO) * ROUNDED_TO
        # one piece of memory for all chunks: new pieces of other sizes would leave holes behind
        room = hidden.new_empty(min(size, hidden.shape[0] + -hidden.shape[0] % multiple(hidden.dtype)), weight.shape[0])
        for start in range(0, hidden.shape[0], size):
            h, t = hidden[start : start + size], targets[start : start + size]
            count = h.shape[0]
            h = F.pad(h, (0, 0, 0, -count % multiple(h.dtype)))
            scores = torch.mm(h, weight.t(), out=room[: h.shape[0]])
            if bias is not None:
                scores += bias
            losses, grad = _rows(scores[:count], t, scale, softcap, need_hidden or need_weight or need_bias)
            often = None if weights is None else weights[start : start + size]
            total += losses.sum() if often is None else losses @ often
            if grad is None:
                continue
            if grad.data_ptr() != scores.data_ptr():
                scores[:count] = grad
            if often is not None:
                scores[:count] *= often[:, None].to(scores.dtype)
            scores[count:] = 0
            if grad_bias is not None:
                grad_bias += scores.sum(dim=0, dtype=torch.float32)
            if grad_hidden is not None:
                grad_hidden[start : start + count] = _through_words(scores, weight)[:count]
            if grad_weight is not None:
                over_all_tokens(scores, h, grad_weight, add=start > 0)
        ctx.grads = (grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, _gradient_format(weight), None if bias is None else _gradient_format(bias))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        by = grad_outputs[0]
        grads = [
            None if grad is None else grad.mul_(by).to(dtype) for grad, dtype in zip(ctx.grads, ctx.dtypes, strict=True)
        ]
        ctx.grads = None
        return (*grads, None, None, None, None)


def _gradient_format(weight: Tensor) -> torch.dtype | None:
    """What its gradient comes in; of a weight with an adapter, which is computed, autograd wants its own format."""
    return weight.grad_dtype if weight.is_leaf else weight.dtype


def _through_words(grad: Tensor, weight: Tensor) -> Tensor:
    """grad (N, V) · weight (V, d): for a few hundred rows PyTorch's product runs at a third of the matrix units' rate."""
    if grad.shape[0] % native.UNITS_TAKE == 0 and _on_units(grad, weight):
        return native.over_words(grad, weight)
    return grad @ weight


def _on_units(rows: Tensor, weight: Tensor) -> bool:
    """Whether matrix units take what is multiplied with the head."""
    whole = all(each % native.UNITS_TAKE == 0 for each in weight.shape)
    return whole and rows.dtype == torch.bfloat16 and native.has_units() and native.serves(rows, weight)


def _rows(
    scores: Tensor, targets: Tensor, scale: float, softcap: float | None, need: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of each row (N,), float32, and where there is `need` the gradient of `scores`, which takes their place."""
    if native.serves(scores):
        losses = native.cross_entropy(scores, targets, scale, softcap, need)
        return losses, scores if need else None
    wide = scores.float()
    if scale != 1.0:
        wide *= scale
    if softcap is not None:
        wide = wide.div_(softcap).tanh_().mul_(softcap)
    slope = None if softcap is None or not need else 1 - (wide / softcap).square_()
    wide -= wide.amax(dim=1, keepdim=True)
    wanted = wide.gather(1, targets[:, None])[:, 0]
    sums = wide.exp_().sum(dim=1)
    losses = sums.log() - wanted
    if not need:
        return losses, None
    wide.scatter_add_(1, targets[:, None], -sums[:, None])
    if slope is not None:
        wide *= slope
    return losses, wide.mul_((scale / sums)[:, None]).to(scores.dtype)


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float = 1.0,
    softcap: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Summed loss in nats of predicting `targets` (N,) from `hidden` (N, d) through the head `weight` (V, d).

    weights (N,), float32: how often each target counts; None: once.
    The result is a float32 scalar; its gradient reaches `hidden`, and `weight` and `bias` where they require one.
    """
    if hidden.shape[0] == 0:
        return hidden.sum() * 0.0
    if not torch.is_grad_enabled():
        # a function of autograd's is not told of it, and would make the gradient of a trained head
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, scale, softcap, weights)  # type: ignore[no-untyped-call]
    return loss
