"""Attention within each of several examples that lie end to end, forward and backward, without a mask over the whole row.

On the processor, by compiled kernels where this machine has them. Without, queries are taken a block at a time against all keys they may see, so a long example needs memory by
its length and not by its square, and the half of the scores that nobody may look at is hardly computed. Where PyTorch's
own causal kernel fits (no window, no soft cap) it does the forward pass. Knows nothing of layers or autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afina.engine import native

QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class Heads:
    """keys: heads of keys and values, each shared by queries / keys query heads (Ainslie et al. 2023); size: of a head.

    scaling: of the scores; window: a token sees that many tokens including itself; softcap: scores become
    softcap · tanh(score / softcap) (Gemma 2's report, section 2).
    """

    queries: int
    keys: int
    size: int
    scaling: float
    window: int | None = None
    softcap: float | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Query heads, key heads, size."""
        return self.queries, self.keys, self.size

    @property
    def widths(self) -> list[int]:
        """Columns of queries, keys and values in a row of `qkv`."""
        return [self.queries * self.size, self.keys * self.size, self.keys * self.size]


def attend(qkv: Tensor, heads: Heads, lengths: Sequence[int], out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """qkv (T, queries + keys + values) → (T, queries · size), in `out` where given, and log Σ exp of each query's scores,
    float32 (queries, T)."""
    out = qkv.new_empty(qkv.shape[0], heads.queries * heads.size) if out is None else out
    if _compiled(qkv, heads) and (qkv.dtype == torch.float32 or not _fits_torch(heads, max(lengths))):
        return out, native.attend(qkv, out, lengths, *heads.shape, heads.scaling, heads.window)
    sums = torch.empty(heads.queries, qkv.shape[0], dtype=torch.float32)
    for start, length in _examples(lengths):
        rows = qkv[start : start + length]
        target = out[start : start + length].view(length, heads.queries, heads.size)
        if _fits_torch(heads, length):
            q, k, v = (
                split_heads(part, heads.size).transpose(0, 1)[None] for part in torch.split(rows, heads.widths, dim=1)
            )
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            answer, norm = kernel(q, k, v, 0.0, True, scale=heads.scaling)
            target.copy_(answer[0].transpose(0, 1))
            sums[:, start : start + length] = norm[0]
        else:
            sums[:, start : start + length] = _forward(rows, heads, target)
    return out, sums


def attend_backward(
    d_out: Tensor, qkv: Tensor, out: Tensor, sums: Tensor, heads: Heads, lengths: Sequence[int]
) -> Tensor:
    """The gradient of `qkv` from that of the output; scores are computed again, not kept."""
    if _compiled(qkv, heads) and native.serves(d_out, out, qkv):
        return native.attend_backward(d_out, qkv, out, sums, lengths, *heads.shape, heads.scaling, heads.window)
    d_qkv = torch.empty_like(qkv)
    # Σ_j p_ij · dp_ij of every query is its output's product with the output's gradient (Dao et al. 2022, appendix B)
    inner = split_heads(d_out * out, heads.size).sum(dim=-1, dtype=torch.float32)
    for start, length in _examples(lengths):
        rows = slice(start, start + length)
        _backward(d_out[rows], qkv[rows], sums[:, rows], inner[rows], heads, d_qkv[rows])
    return d_qkv


def _compiled(qkv: Tensor, heads: Heads) -> bool:
    return heads.softcap is None and native.serves(qkv) and native.serves_heads(heads.size)


def _fits_torch(heads: Heads, length: int) -> bool:
    """Whether PyTorch's own causal kernel serves an example; in bfloat16 it uses matrix units that ours does not."""
    return heads.softcap is None and (heads.window is None or length <= heads.window)


def _examples(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for length in lengths:
        yield start, length
        start += length


def split_heads(part: Tensor, size: int) -> Tensor:
    """(T, heads · size) as (T, heads, size); a view."""
    return part.view(part.shape[0], -1, size)


def _grouped(part: Tensor, heads: Heads) -> Tensor:
    """Queries (L, queries · size) as (keys, group, L, size): the heads that share keys beside each other."""
    return part.view(part.shape[0], heads.keys, -1, heads.size).permute(1, 2, 0, 3)


def _blocks(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """(first query, end of queries, first key) of every block; its keys end where its queries end."""
    for first in range(0, length, QUERIES_AT_ONCE):
        end = min(length, first + QUERIES_AT_ONCE)
        yield first, end, 0 if window is None else max(0, first + 1 - window)


def _hide(scores: Tensor, first: int, end: int, key: int, window: int | None) -> None:
    """-inf where query i may not look at key j: j > i, or j ≤ i - window. scores (keys, group, queries, keys seen)."""
    count = end - first
    triangle = torch.full((count, count), float("-inf"), device=scores.device).triu_(1)
    scores[..., first - key :] += triangle
    if window is not None:
        i = torch.arange(first, end, device=scores.device)[:, None]
        j = torch.arange(key, end, device=scores.device)[None]
        scores.masked_fill_(j <= i - window, float("-inf"))


def _scores(q: Tensor, k: Tensor, heads: Heads) -> Tensor:
    """float32 scores (keys, group · queries, keys seen), scaled, before the soft cap."""
    return torch.bmm(q.float(), k.float().transpose(1, 2)).mul_(heads.scaling)


def _forward(rows: Tensor, heads: Heads, target: Tensor) -> Tensor:
    length = rows.shape[0]
    q_part, k_part, v_part = torch.split(rows, heads.widths, dim=1)
    q = _grouped(q_part, heads)
    k, v = (split_heads(part, heads.size).transpose(0, 1) for part in (k_part, v_part))
    group = q.shape[1]
    norm = torch.empty(heads.keys, group, length, dtype=torch.float32, device=rows.device)
    grouped = _grouped(target.flatten(1), heads)
    for first, end, key in _blocks(length, heads.window):
        count = end - first
        scores = _scores(q[:, :, first:end].flatten(1, 2), k[:, key:end], heads)
        if heads.softcap is not None:
            scores.div_(heads.softcap).tanh_().mul_(heads.softcap)
        shaped = scores.view(heads.keys, group, count, end - key)
        _hide(shaped, first, end, key, heads.window)
        sums = shaped.logsumexp(dim=-1)
        weights = shaped.sub_(sums[..., None]).exp_().view_as(scores)
        answer = torch.bmm(weights.to(rows.dtype), v[:, key:end])
        grouped[:, :, first:end] = answer.view(heads.keys, group, count, heads.size)
        norm[:, :, first:end] = sums
    return norm.flatten(0, 1)


def _backward(d_out: Tensor, rows: Tensor, norm: Tensor, inner: Tensor, heads: Heads, d_rows: Tensor) -> None:
    length = rows.shape[0]
    q_part, k_part, v_part = torch.split(rows, heads.widths, dim=1)
    dq_part, dk_part, dv_part = torch.split(d_rows, heads.widths, dim=1)
    q, d, dq = (_grouped(part, heads) for part in (q_part, d_out, dq_part))
    k, v = (split_heads(part, heads.size).transpose(0, 1).contiguous() for part in (k_part, v_part))
    group = q.shape[1]
    norm = norm.reshape(heads.keys, group, length)
    inner = inner.t().reshape(heads.keys, group, length)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for first, end, key in _blocks(length, heads.window):
        count = end - first
        q_block, d_block = q[:, :, first:end].flatten(1, 2), d[:, :, first:end].flatten(1, 2)
        weights = _scores(q_block, k[:, key:end], heads)
        slope = None
        if heads.softcap is not None:
            weights = weights.div_(heads.softcap).tanh_()
            slope = 1.0 - weights.square()
            weights.mul_(heads.softcap)
        shaped = weights.view(heads.keys, group, count, end - key)
        _hide(shaped, first, end, key, heads.window)
        shaped.sub_(norm[:, :, first:end, None]).exp_()
        dv[:, key:end] += torch.bmm(weights.to(rows.dtype).transpose(1, 2), d_block)
        change = torch.bmm(d_block, v[:, key:end].transpose(1, 2)).float()
        change.view_as(shaped).sub_(inner[:, :, first:end, None])
        change.mul_(weights)
        if slope is not None:
            change.mul_(slope)
        narrow = change.mul_(heads.scaling).to(rows.dtype)
        dq[:, :, first:end] = torch.bmm(narrow, k[:, key:end]).view(heads.keys, group, count, heads.size)
        dk[:, key:end] += torch.bmm(narrow.transpose(1, 2), q_block)
    split_heads(dk_part, heads.size).transpose(0, 1).copy_(dk)
    split_heads(dv_part, heads.size).transpose(0, 1).copy_(dv)
