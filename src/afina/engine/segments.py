"""Attention within each of several examples that lie end to end, forward and backward, without a mask over the whole row.

On the processor, by compiled kernels where this machine has them. Without, queries are taken a block at a time against
all keys they may see, so a long example needs memory by its length and not by its square, and the half of the scores that
nobody may look at is hardly computed. Where PyTorch's own causal kernel fits (no window, no soft cap) it does the forward
pass. Knows nothing of layers or autograd.

Examples that share a beginning look back at it (`prefixes.py`): attention to two sets of keys is that to each, weighted by
its Σ exp (Dao et al. 2022, section 3.1), and the gradients of keys and values add up over all who look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor

from afina.engine import native

QUERIES_AT_ONCE = 256
NEXT_TO_NOTHING = -1e30
"""In place of -inf, which cannot be taken from itself."""


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


class Look(NamedTuple):
    """The tokens [first, end) of a row, whole examples, see its tokens [start, stop) besides their own example: all of them come after those."""

    first: int
    end: int
    start: int
    stop: int


def attend(
    qkv: Tensor,
    heads: Heads,
    lengths: Sequence[int],
    looks: Sequence[Look] = (),
    positions: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """qkv (T, queries + keys + values) → (T, queries · size), in `out` where given, and log Σ exp of each query's scores,
    float32 (queries, T).

    looks: what tokens see besides their own example; positions (T,): of the tokens, needed with it.
    """
    out = qkv.new_empty(qkv.shape[0], heads.queries * heads.size) if out is None else out
    theirs = _has_units(qkv.dtype) and not native.has_units() and _fits_torch(heads, max(lengths))
    compiled = _compiled(qkv, heads) and not theirs
    near, others = _apart(looks, positions, heads, compiled)
    if compiled:
        sums = native.attend(qkv, out, lengths, near, *heads.shape, heads.scaling, heads.window)
    else:
        sums = _attend(qkv, heads, lengths, out)
    if positions is not None:
        for look in others:
            _look_back(qkv, heads, look, positions, split_heads(out, heads.size), sums)
    return out, sums


def _attend(qkv: Tensor, heads: Heads, lengths: Sequence[int], out: Tensor) -> Tensor:
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
    return sums


def attend_backward(
    d_out: Tensor,
    qkv: Tensor,
    out: Tensor,
    sums: Tensor,
    heads: Heads,
    lengths: Sequence[int],
    looks: Sequence[Look] = (),
    positions: Tensor | None = None,
) -> Tensor:
    """The gradient of `qkv` from that of the output; scores are computed again, not kept."""
    compiled = _compiled(qkv, heads) and native.serves(qkv, d_out, out)
    near, others = _apart(looks, positions, heads, compiled)
    if compiled:
        d_qkv = native.attend_backward(d_out, qkv, out, sums, lengths, near, *heads.shape, heads.scaling, heads.window)
    else:
        d_qkv = torch.empty_like(qkv)
        for start, length in _examples(lengths):
            rows = slice(start, start + length)
            inner = _inner(d_out[rows], out[rows], heads)
            _backward(d_out[rows], qkv[rows], sums[:, rows], inner, heads, d_qkv[rows])
    if positions is not None:
        for look in others:
            _look_back_backward(d_out, qkv, out, sums, heads, look, positions, d_qkv)
    return d_qkv


def _inner(d_out: Tensor, out: Tensor, heads: Heads) -> Tensor:
    """Σ_j p_ij · dp_ij of every query (T, queries): its output's product with the output's gradient (Dao et al. 2022,
    appendix B)."""
    return split_heads(d_out * out, heads.size).sum(dim=-1, dtype=torch.float32)


def _compiled(qkv: Tensor, heads: Heads) -> bool:
    return heads.softcap is None and native.serves(qkv) and native.serves_heads(heads.size)


def _fits_torch(heads: Heads, length: int) -> bool:
    """Whether PyTorch's own causal kernel serves an example."""
    return heads.softcap is None and (heads.window is None or length <= heads.window)


def _has_units(dtype: torch.dtype) -> bool:
    """Whether this processor has matrix units (AMX) for such numbers, which PyTorch's kernel uses and ours only where its compiler knew them."""
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


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
        block, seen = slice(first, end), slice(key, end)
        hide = partial(_hide, first=first, end=end, key=key, window=heads.window)
        of_q, of_k, of_v = _pull(
            q[:, :, block], d[:, :, block], k[:, seen], v[:, seen], norm[:, :, block], inner[:, :, block], heads, hide
        )
        dq[:, :, block] = of_q
        dk[:, seen] += of_k
        dv[:, seen] += of_v
    split_heads(dk_part, heads.size).transpose(0, 1).copy_(dk)
    split_heads(dv_part, heads.size).transpose(0, 1).copy_(dv)


def _pull(
    q: Tensor,
    d: Tensor,
    k: Tensor,
    v: Tensor,
    norm: Tensor,
    inner: Tensor,
    heads: Heads,
    hide: Callable[[Tensor], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values from a block of queries and the keys it sees.

    q, d (of the output), (keys, group, queries, size); k, v (keys, seen, size); norm, inner (keys, group, queries).
    """
    count, size = q.shape[2:]
    q, d = q.flatten(1, 2), d.flatten(1, 2)
    weights = _scores(q, k, heads)
    slope = None
    if heads.softcap is not None:
        weights = weights.div_(heads.softcap).tanh_()
        slope = 1.0 - weights.square()
        weights.mul_(heads.softcap)
    shaped = weights.view(heads.keys, -1, count, k.shape[1])
    hide(shaped)
    shaped.sub_(norm[..., None]).exp_()
    of_v = torch.bmm(weights.to(d.dtype).transpose(1, 2), d)
    change = torch.bmm(d, v.transpose(1, 2)).float()
    change.view_as(shaped).sub_(inner[..., None])
    change.mul_(weights)
    if slope is not None:
        change.mul_(slope)
    narrow = change.mul_(heads.scaling).to(d.dtype)
    return torch.bmm(narrow, k).view(heads.keys, -1, count, size), torch.bmm(narrow.transpose(1, 2), q), of_v


def _look_back(qkv: Tensor, heads: Heads, look: Look, positions: Tensor, out: Tensor, norm: Tensor) -> None:
    """Mix what the tokens of `look` find at its keys into `out` (T, queries, size) and norm (queries, T)."""
    q_part, k_part, v_part = torch.split(qkv, heads.widths, dim=1)
    seen = slice(look.start, look.stop)
    k, v = (split_heads(part[seen], heads.size).transpose(0, 1) for part in (k_part, v_part))
    by_kernel = heads.softcap is None and not _is_far(look, positions, heads.window)
    for block in [slice(look.first, look.end)] if by_kernel else _queries(look):
        if by_kernel:
            q = split_heads(q_part[block], heads.size).transpose(0, 1)
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            found, more = (each[0] for each in kernel(q[None], k[None], v[None], 0.0, False, scale=heads.scaling))
        else:
            q = _grouped(q_part[block], heads)
            scores = _scores(q.flatten(1, 2), k, heads)
            if heads.softcap is not None:
                scores.div_(heads.softcap).tanh_().mul_(heads.softcap)
            shaped = scores.view(heads.keys, -1, q.shape[2], k.shape[1])
            _hide_far(shaped, look, positions, heads.window, block)
            more = shaped.logsumexp(dim=-1)  # -inf where all keys are too far away
            weights = shaped.sub_(more.clamp(min=NEXT_TO_NOTHING)[..., None]).exp_().view_as(scores)
            found = torch.bmm(weights.to(v.dtype), v).view(heads.queries, -1, heads.size)
            more = more.flatten(0, 1)
        own = norm[:, block]
        whole = torch.logaddexp(own, more)
        of_own, of_found = ((part - whole).exp_().t()[..., None] for part in (own, more))
        out[block] = (out[block] * of_own).addcmul_(found.transpose(0, 1), of_found)
        norm[:, block] = whole


def _look_back_backward(
    d_out: Tensor, qkv: Tensor, out: Tensor, norm: Tensor, heads: Heads, look: Look, positions: Tensor, d_qkv: Tensor
) -> None:
    """Add the gradients that flow through `look` to d_qkv; norm (queries, T)."""
    q_part, k_part, v_part = torch.split(qkv, heads.widths, dim=1)
    dq_part, dk_part, dv_part = torch.split(d_qkv, heads.widths, dim=1)
    seen = slice(look.start, look.stop)
    k, v = (split_heads(part[seen], heads.size).transpose(0, 1).contiguous() for part in (k_part, v_part))
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for block in _queries(look):
        of_q, of_k, of_v = _pull(
            _grouped(q_part[block], heads),
            _grouped(d_out[block], heads),
            k,
            v,
            norm[:, block].reshape(heads.keys, -1, block.stop - block.start),
            _inner(d_out[block], out[block], heads).t().reshape(heads.keys, -1, block.stop - block.start),
            heads,
            partial(_hide_far, look=look, positions=positions, window=heads.window, block=block),
        )
        _grouped(dq_part[block], heads).add_(of_q)
        dk += of_k
        dv += of_v
    split_heads(dk_part[seen], heads.size).transpose(0, 1).add_(dk)
    split_heads(dv_part[seen], heads.size).transpose(0, 1).add_(dv)


def _queries(look: Look) -> Iterator[slice]:
    """The queries of `look` a block at a time: the more, the fewer keys they see."""
    at_once = max(1, QUERIES_AT_ONCE**2 // (look.stop - look.start))
    for first in range(look.first, look.end, at_once):
        yield slice(first, min(look.end, first + at_once))


def _apart(
    looks: Sequence[Look], positions: Tensor | None, heads: Heads, compiled: bool
) -> tuple[list[Look], list[Look]]:
    """The looks for the kernels, which see all they look at, and the others."""
    if positions is None:
        return [], []
    kernels = [compiled and not _is_far(look, positions, heads.window) for look in looks]
    return list(compress(looks, kernels)), [look for look, kernel in zip(looks, kernels, strict=True) if not kernel]


def _is_far(look: Look, positions: Tensor, window: int | None) -> bool:
    """Whether some of the keys of `look` are too far away from some of its queries."""
    return window is not None and int(positions[look.first : look.end].max() - positions[look.start]) >= window


def _hide_far(scores: Tensor, look: Look, positions: Tensor, window: int | None, block: slice) -> None:
    """-inf where a query of the block stands `window` tokens or more behind a key of `look`."""
    if window is not None and _is_far(look, positions, window):
        far = positions[block, None] - positions[None, look.start : look.stop] >= window
        scores.masked_fill_(far, float("-inf"))
