"""Cross-entropy that never holds the full scores: chunk by chunk, loss and gradient in the same pass.

With a vocabulary of 49,152 the scores of one row of 2,048 tokens are 400 MB, and an ordinary loss holds them several
times. Here only tokens that are learned reach the output head, a few hundred at a time, and what backward needs (the
gradient of the hidden states, and of the head when it is trained) is computed before the scores are let go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCORES_AT_ONCE = 24_000_000
"""Scores held at a time (96 MB in float32), which sets how many tokens a chunk has."""


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
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = max(32, SCORES_AT_ONCE // weight.shape[0])
        for start in range(0, hidden.shape[0], size):
            h, t = hidden[start : start + size], targets[start : start + size]
            scores = torch.nn.functional.linear(h, weight, bias).float()
            if scale != 1.0:
                scores *= scale
            if softcap is not None:
                scores = scores.div_(softcap).tanh_().mul_(softcap)
            slope = None if softcap is None or not any(ctx.needs_input_grad) else 1 - (scores / softcap).square_()
            # softmax in place; its row sums are divided by where it is smallest: on the result's side of the products
            scores -= scores.amax(dim=1, keepdim=True)
            wanted = scores.gather(1, t[:, None])[:, 0]
            sums = scores.exp_().sum(dim=1)
            each = sums.log() - wanted
            total += each.sum() if weights is None else each @ weights[start : start + size]
            if not (need_hidden or need_weight or need_bias):
                continue
            scores.scatter_add_(1, t[:, None], -sums[:, None])
            if slope is not None:
                scores *= slope
            share = (scale / sums if weights is None else weights[start : start + size] * scale / sums)[:, None]
            if grad_bias is not None:
                grad_bias += (scores * share).sum(dim=0)
            grad = scores.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + size]).mul_(share)
            if grad_weight is not None:
                _add_product(grad_weight, grad, h * share.to(h.dtype))
        ctx.grads = (grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        by = grad_outputs[0]
        grads = [
            None if grad is None else (grad * by).to(dtype) for grad, dtype in zip(ctx.grads, ctx.dtypes, strict=True)
        ]
        ctx.grads = None
        return (*grads, None, None, None, None)


def _add_product(into: Tensor, grad: Tensor, h: Tensor) -> None:
    if into.dtype == grad.dtype:
        into.addmm_(grad.t(), h)
    else:
        into += grad.t() @ h


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
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, scale, softcap, weights)  # type: ignore[no-untyped-call]
    return loss
