"""Attention over examples that lie end to end in one row: each looks at itself alone, and no mask is ever built.

A dense (T, T) mask over a row of T tokens costs more than all matrix products of the layer. So q, k and v are split at
the boundaries of the examples and each goes through the causal kernel by itself. The function is registered with
transformers, whose models then call it in every layer; where the boundaries lie is told by `laid_out`. Graphics cards have
kernels that take the whole row at once: see `kernels.py`, whose results are held to this one's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

KNOWN = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "smollm3", "granite", "olmo2", "phi3",
})  # fmt: skip
"""Families whose packed loss and gradients the tests compare with transformers' own; others are tried out before use."""


class Laid:
    """Where the examples of a row lie; `kept` is for what kernels make of that once a row and use in every layer."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self.kept: dict[Any, Any] = {}


@dataclass(frozen=True)
class Call:
    """What a layer asks of attention: heads that query, heads that are looked at, their size; see `packed_attention`."""

    heads: int
    key_heads: int
    size: int
    scaling: float | None
    sliding_window: int | None
    softcap: float | None


# Module state on purpose: backward may run the function again (activation checkpointing) in a thread of autograd's own.
_laid: Laid | None = None
_calls: set[Call] | None = None


@contextmanager
def laid_out(lengths: Sequence[int] | None) -> Iterator[None]:
    """While inside (forward and backward), rows consist of examples of these `lengths` (tokens)."""
    global _laid
    before, _laid = _laid, None if lengths is None else Laid(lengths)
    try:
        yield
    finally:
        _laid = before


def laid(tokens: int) -> Laid:
    """How the present row lies; a row of `tokens` nobody told of is one example."""
    return _laid if _laid is not None else Laid((tokens,))


@contextmanager
def recorded() -> Iterator[set[Call]]:
    """While inside, the different calls of layers gather in the set."""
    global _calls
    before, _calls = _calls, set()
    try:
        yield _calls
    finally:
        _calls = before


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each example of one row.

    query (1, heads, T, size); key and value (1, key heads, T, size), fewer heads where queries share them. Returns
    (1, T, heads, size). sliding_window: a token sees that many tokens including itself; softcap: scores become
    softcap·tanh(score / softcap) (Gemma 2, section 2 of its report).
    """
    refuse_unknown(module, unused)
    if _calls is not None:
        _calls.add(Call(query.shape[1], key.shape[1], query.shape[3], scaling, sliding_window, softcap))
    lengths = list(laid(query.shape[2]).lengths)
    groups = query.shape[1] // key.shape[1]
    outputs = []
    for q, k, v in zip(*(torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)), strict=True):
        length = q.shape[2]
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        if softcap is not None:
            output = _soft_capped(q, k, v, scaling, softcap, window, dropout)
        else:
            mask = None if window is None else _band(length, window, q.device)
            output = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=groups > 1
            )
        outputs.append(output)
    whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return whole.transpose(1, 2).contiguous(), None


def _soft_capped(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, softcap: float, window: int | None, dropout: float
) -> Tensor:
    """Written out, for no fused kernel caps the scores; holds (heads, L, L) scores of one example at a time."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(2, 3) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    length = q.shape[2]
    seen = _band(length, length if window is None else window, q.device)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, dropout, training=dropout > 0) @ v


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """(length, length), True where the row's token may look at the column's: itself and `window` - 1 before it."""
    every = torch.ones(length, length, dtype=torch.bool, device=device)
    return every.tril().triu(1 - window)


def refuse_unknown(module: torch.nn.Module, extras: dict[str, Any]) -> None:
    """Some architectures ask for more than is done here (sinks, position biases, both directions): NotImplementedError."""
    asked = [name for name in ("s_aux", "position_bias", "sinks") if extras.get(name) is not None]
    if asked or getattr(module, "is_causal", True) is False:
        raise NotImplementedError(f"packed attention does not support {asked or 'attention in both directions'}")
