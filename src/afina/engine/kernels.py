"""Attention of a whole row of examples at once, by the kernels that graphics cards have; numerically that of `attention.py`.

- varlen: PyTorch's own flash attention for examples of different lengths (`torch.nn.attention.varlen`)
- flash: the `flash-attn` package's (Dao 2023), which can cap the scores too
- flex: flex attention (Dong et al. 2024), compiled; a mask of blocks says which parts of the row see each other
- split: an example at a time, for everything else

Each is registered with transformers under a name of its own. A kernel is taken only after it has given the split's results
and gradients here, on this device: none of the first three has been run on a graphics card by its author.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from afina.engine import device as devices
from afina.engine.attention import Call, Laid, laid, laid_out, packed_attention, refuse_unknown

SPLIT = "split"
BLOCK = 128
"""Tokens of a side of flex attention's blocks."""

TRIED = ((37, 1, 150, 70), (300, 212, 5), (90,))
"""Rows of examples that a kernel is tried out on: inside a block, a token alone, over the edges of blocks; then other sizes,
for which what is compiled is compiled again."""
TRIED_WINDOW = 24
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}

Kernel = Callable[[Tensor, Tensor, Tensor, Laid, float | None, int | None, float | None], Tensor]


def varlen(
    q: Tensor, k: Tensor, v: Tensor, row: Laid, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """q (1, heads, T, size), k and v (1, key heads, T, size) → (1, T, heads, size), by PyTorch's flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None:
        raise NotImplementedError("varlen_attn cannot cap the scores")
    starts, longest = _starts(row, q.device), max(row.lengths)
    out: Any = varlen_attn(
        *_by_token(q, k, v),
        cu_seq_q=starts,
        cu_seq_k=starts,
        max_q=longest,
        max_k=longest,
        scale=scaling,
        window_size=(_before(window, longest), 0),
        enable_gqa=k.shape[1] != q.shape[1],
    )
    result: Tensor = out[None]
    return result


def flash(
    q: Tensor, k: Tensor, v: Tensor, row: Laid, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """The same by the package's function, which knows fewer key heads than heads by their shapes."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found,unused-ignore]

    starts, longest = _starts(row, q.device), max(row.lengths)
    before = _before(window, longest)
    out: Tensor = flash_attn_varlen_func(
        *_by_token(q, k, v),
        cu_seqlens_q=starts,
        cu_seqlens_k=starts,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scaling,
        causal=True,
        window_size=(before, -1 if before < 0 else 0),
        softcap=softcap or 0.0,
    )
    return out[None]


def flex(
    q: Tensor, k: Tensor, v: Tensor, row: Laid, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """The same by flex attention; the row is filled up to whole blocks, whose last tokens see but themselves."""
    groups, tokens = q.shape[1] // k.shape[1], q.shape[2]
    if groups & (groups - 1):  # its kernels share key heads among 2, 4, 8 … heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    q, k, v = (F.pad(tensor, (0, 0, 0, -tokens % BLOCK)) for tensor in (q, k, v))
    out = _flex_attention(devices.compiles(q.device))(
        q,
        k,
        v,
        score_mod=_cap(softcap),
        block_mask=block_mask(row, window, q.device),
        scale=scaling,
        enable_gqa=k.shape[1] != q.shape[1],
    )
    result: Tensor = out[:, :, :tokens].transpose(1, 2).contiguous()
    return result


KERNELS: dict[str, Kernel] = {"varlen": varlen, "flash": flash, "flex": flex}


def attention_by(name: str) -> Callable[..., tuple[Tensor, None]]:
    """The function of `packed_attention`'s form that computes by the kernel `name`."""
    if name == SPLIT:
        return packed_attention
    kernel = KERNELS[name]

    def attend(
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
        refuse_unknown(module, unused)
        if dropout > 0:
            return packed_attention(module, query, key, value, None, dropout, scaling, sliding_window, softcap)
        return kernel(query, key, value, laid(query.shape[2]), scaling, sliding_window, softcap), None

    return attend


def register(name: str) -> str:
    """Make `name` known to transformers; returns what it is called there. Without a mask function, no mask is built for it."""
    from transformers import AttentionInterface

    # by number: transformers takes any name with “flash” in it for one of its own and looks for packages
    known = f"afina_packed_{[SPLIT, *KERNELS].index(name)}"
    AttentionInterface.register(known, attention_by(name))
    return known


def best(names: Sequence[str], calls: Iterable[Call], device: torch.device, dtype: torch.dtype) -> str:
    """The first of `names` that does right whatever the layers ask for, SPLIT where none does."""
    asked = sorted(calls, key=repr)
    return next((name for name in names if all(agrees(name, call, device, dtype) for call in asked)), SPLIT)


def agrees(name: str, call: Call, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel gives the split's result and gradients on examples made up for `call`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return all(_agrees_on(lengths, name, call, device, dtype) for lengths in TRIED)
        except devices.FAILURES:
            return False


def _agrees_on(lengths: Sequence[int], name: str, call: Call, device: torch.device, dtype: torch.dtype) -> bool:
    random = torch.Generator().manual_seed(0)
    window = None if call.sliding_window is None else min(call.sliding_window, TRIED_WINDOW)
    *given, gradient = (
        torch.randn(1, heads, sum(lengths), call.size, generator=random).to(device, dtype)
        for heads in (call.heads, call.key_heads, call.key_heads, call.heads)
    )

    def compute(by: str) -> list[Tensor]:
        inputs = [tensor.clone().requires_grad_(True) for tensor in given]
        with laid_out(lengths):
            out, _ = attention_by(by)(torch.nn.Identity(), *inputs, None, 0.0, call.scaling, window, call.softcap)
            torch.autograd.backward(out, gradient.transpose(1, 2))
        return [out.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]

    return all(
        bool((one.float() - other.float()).norm() <= TOLERANCE[dtype] * other.float().norm())
        for one, other in zip(compute(name), compute(SPLIT), strict=True)
    )


def _by_token(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each (1, heads, T, size) as (T, heads, size), which is how it was before transformers turned it."""
    return q[0].transpose(0, 1).contiguous(), k[0].transpose(0, 1).contiguous(), v[0].transpose(0, 1).contiguous()


def _before(window: int | None, longest: int) -> int:
    """How many tokens before its own one sees, -1 for all: flash attention does not count the token itself."""
    return -1 if window is None or window >= longest else window - 1


def _starts(row: Laid, device: torch.device) -> Tensor:
    """(examples + 1,) int32: where each example begins, and where the row ends."""
    key = ("starts", device)
    if key not in row.kept:
        ends = torch.tensor((0, *row.lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        row.kept[key] = devices.to_device(ends, device)
    return row.kept[key]  # type: ignore[no-any-return]


def block_mask(row: Laid, window: int | None, device: torch.device) -> Any:
    """flex attention's mask of `row`, made once and used by all layers with this `window`.

    Made from the lengths alone, never by looking at all pairs of tokens: the first token that one sees never lies before
    that of the token to its left, so each block of queries sees a stretch of blocks, and all of a stretch within it.
    """
    from torch.nn.attention.flex_attention import BlockMask

    key = ("blocks", window, device)
    if key in row.kept:
        return row.kept[key]
    first = _first_seen(row, window)
    blocks = torch.arange(first.shape[0] // BLOCK)
    by_block = first.view(-1, BLOCK)
    begin = (by_block[:, 0] // BLOCK)[:, None]
    whole_from = ((by_block[:, -1] + BLOCK - 1) // BLOCK)[:, None]
    some = (blocks >= begin) & (blocks <= blocks[:, None])
    whole = some & (blocks >= whole_from) & (blocks < blocks[:, None])
    seen = devices.to_device(first, device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= seen[query])

    counts, order, whole_counts, whole_order = (
        devices.to_device(part, device) for chosen in (some & ~whole, whole) for part in _ordered(chosen)
    )
    row.kept[key] = BlockMask.from_kv_blocks(
        counts,
        order,
        whole_counts,
        whole_order,
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(first.shape[0], first.shape[0]),
    )
    return row.kept[key]


def _first_seen(row: Laid, window: int | None) -> Tensor:
    """(T,) the first token that each token sees; T is filled up to whole blocks with tokens that see themselves."""
    lengths = torch.tensor(row.lengths)
    starts = lengths.cumsum(0) - lengths
    tokens = int(lengths.sum())
    filled = torch.arange(tokens + -tokens % BLOCK)
    first = torch.cat([torch.repeat_interleave(starts, lengths), filled[tokens:]])
    return first if window is None else torch.maximum(first, filled - window + 1)


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 1, n) how many of each row are chosen, (1, 1, n, n) the chosen ones first, as int32."""
    counts = chosen.sum(dim=-1, dtype=torch.int32)
    order = chosen.int().argsort(dim=-1, descending=True, stable=True).int()
    return counts[None, None], order[None, None]


@functools.cache
def _cap(softcap: float | None) -> Any:
    """scores → softcap·tanh(score / softcap); one function for each value, so that it is compiled once."""
    if softcap is None:
        return None

    def cap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


@functools.cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return devices.compiled(flex_attention) if compiled else flex_attention
