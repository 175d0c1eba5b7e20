"""What lies between the products, by compiled kernels where there are some (`kernels.c`): the same results, fewer passes.

Each function here takes and gives tensors and is asked for only where `serves` says so; its twin in PyTorch's own
operators stands beside the call, in `elementwise.py`, `segments.py` and `loss.py`, and the tests hold one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from afina.engine.native.build import library
from afina.engine.native.calls import Value, call

__all__ = [
    "UNITS_TAKE",
    "attend",
    "attend_backward",
    "cross_entropy",
    "gated",
    "gated_backward",
    "has_units",
    "library",
    "loss_of_words",
    "norm",
    "norm_backward",
    "norm_scale_gradient",
    "over_tokens",
    "over_words",
    "rotate",
    "serves",
    "serves_heads",
    "weave_both",
]
Span = tuple[int, int, int, int]
"""The rows [first, end), whole examples, see the rows [start, stop) besides their own: all of them come after those."""
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
UNITS_TAKE = 32
"""Matrix units take blocks of that many tokens, numbers of a head, or of a rank."""
UNITS_ONLY = frozenset({"weave_both", "over_tokens", "over_words", "loss_of_words"})


def serves(*tensors: Tensor) -> bool:
    """Whether there are kernels for these: on the processor, of one format, lying in one piece."""
    first = tensors[0]
    if library() is None or first.dtype not in NAMES:
        return False
    return all(each.device.type == "cpu" and each.dtype == first.dtype and each.is_contiguous() for each in tensors)


def serves_heads(size: int) -> bool:
    """Whether attention is there for heads of `size`: whole registers."""
    found = library()
    return found is not None and size % int(found.lanes_of()) == 0


def has_units() -> bool:
    """Whether there are kernels for whole blocks of bfloat16: for matrix units, or for AVX512-BF16's dot products in their place."""
    found = library()
    return found is not None and bool(found.units())


def norm(x: Tensor, scale: Tensor, eps: float, inverse: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x · inverse · scale, and inverse = 1 / √(mean(x²) + eps) (…, 1) in float32, which is computed unless given."""
    y = torch.empty_like(x)
    given = inverse is not None
    known = torch.empty((*x.shape[:-1], 1), dtype=torch.float32) if inverse is None else inverse
    width = x.shape[-1]
    _call("norm", x, x, scale, known, y, x.numel() // width, width, eps, given)
    return y, known


def norm_backward(dy: Tensor, x: Tensor, scale: Tensor, inverse: Tensor, residual: Tensor | None) -> Tensor:
    """The gradient of x, plus `residual`."""
    dx = torch.empty_like(x)
    width = x.shape[-1]
    _call("norm_backward", x, dy, x, scale, inverse, residual, dx, x.numel() // width, width)
    return dx


def norm_scale_gradient(dy: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of the scale, float32 (d,)."""
    width = x.shape[-1]
    d_scale = torch.empty(width, dtype=torch.float32)
    _call("norm_scale_gradient", x, dy, x, inverse, d_scale, x.numel() // width, width)
    return d_scale


def gated(gate_up: Tensor, gelu: bool) -> Tensor:
    """act(gate) · up of gate_up (T, 2·inner)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    inner = gate_up.new_empty(rows, width)
    _call("gated", gate_up, gate_up, inner, rows, width, gelu)
    return inner


def gated_backward(d_inner: Tensor, gate_up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """The gradient of `gate_up`, and act(gate) · up once more."""
    d_gate_up, inner = torch.empty_like(gate_up), torch.empty_like(d_inner)
    _call("gated_backward", gate_up, d_inner, gate_up, d_gate_up, inner, *d_inner.shape, gelu)
    return d_gate_up, inner


def rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> None:
    """Rotary positions in place: x (T, heads, size) whose rows may lie apart, cos and sin (T, 1, size / 2)."""
    _call("rotate", x, x, cos, sin, x.shape[0], x.stride(0), x.shape[1], x.shape[2], back)


def cross_entropy(scores: Tensor, targets: Tensor, scale: float, softcap: float | None, gradient: bool) -> Tensor:
    """The loss of each row of `scores` (N, V), float32 (N,); where `gradient`, `scores` become its gradient."""
    losses = torch.empty(scores.shape[0], dtype=torch.float32)
    _call("cross_entropy", scores, scores, targets, losses, *scores.shape, scale, softcap or 0.0, gradient)
    return losses


def attend(
    qkv: Tensor, out: Tensor, lengths: Sequence[int], looks: Sequence[Span], queries: int, keys: int, size: int, scaling: float,
    window: int | None,
) -> Tensor:  # fmt: skip
    """Causal attention of every example by itself and of `looks` at what they see besides: into `out` (T, queries · size); returns
    log Σ e^score (queries, T)."""
    sums = torch.empty(queries, qkv.shape[0], dtype=torch.float32)
    shape = queries, keys, size, scaling
    given = qkv, out, sums, _starts(*lengths), len(lengths)
    if _by_units(qkv, size):
        _call("attend_by_units", qkv, *given, _looks(*looks), len(looks), *shape, window or 0)
        return sums
    _call("attend", qkv, *given, *shape, window or 0)
    for look in looks:
        _call("look", qkv, qkv, out, sums, qkv.shape[0], *look, *shape)
    return sums


def attend_backward(
    d_out: Tensor, qkv: Tensor, out: Tensor, sums: Tensor, lengths: Sequence[int], looks: Sequence[Span], queries: int, keys: int,
    size: int, scaling: float, window: int | None,
) -> Tensor:  # fmt: skip
    """The gradient of `qkv`."""
    d_qkv = torch.empty_like(qkv)
    shape = queries, keys, size, scaling
    given = d_out, qkv, out, sums, d_qkv
    if _by_units(qkv, size):
        examples = _starts(*lengths), len(lengths), _looks(*looks), len(looks)
        _call("attend_backward_by_units", qkv, *given, *examples, *shape, window or 0)
        return d_qkv
    _call("attend_backward", qkv, *given, _starts(*lengths), len(lengths), *shape, window or 0)
    for look in looks:
        _call("look_backward", qkv, *given, qkv.shape[0], *look, *shape)
    return d_qkv


def weave_both(matrix: Tensor, across: Tensor, along: Tensor) -> None:
    """`matrix` (rank, width) as the products below take it."""
    _call("weave_both", matrix, matrix, *matrix.shape, across, along)


def over_tokens(z: Tensor, x: Tensor) -> Tensor:
    """zᵀ · x, float32 (rank, width); z (T, rank), x (T, width)."""
    gradient = torch.empty(z.shape[1], x.shape[1], dtype=torch.float32)
    _call("over_tokens", x, z, x, gradient, *x.shape, z.shape[1])
    return gradient


def over_words(scores: Tensor, weight: Tensor) -> Tensor:
    """scores (N, V) · weight (V, d), float32 (N, d); N, V and d of whole blocks."""
    rows, words, width = *scores.shape, weight.shape[1]
    product = torch.empty(rows, width, dtype=torch.float32)
    _call("over_words", scores, scores, weight, product, rows, words, width)
    return product


def loss_of_words(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, softcap: float | None, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of each token (N,) whose scores are hidden (N, d) · weightᵀ, and where asked for the gradient of `hidden`, both float32;
    the numbers of words and of d are whole blocks."""
    rows, (words, width) = hidden.shape[0], weight.shape
    filled = -rows % UNITS_TAKE
    hidden, targets = F.pad(hidden, (0, 0, 0, filled)), F.pad(targets, (0, filled))
    losses = torch.empty(rows + filled, dtype=torch.float32)
    d_hidden = torch.empty(rows + filled, width, dtype=torch.float32) if gradient else None
    shape = (rows + filled, words, width)
    _call("loss_of_words", hidden, hidden, weight, targets, losses, d_hidden, *shape, scale, softcap or 0.0)
    return losses[:rows], None if d_hidden is None else d_hidden[:rows]


@lru_cache(maxsize=8)
def _starts(*lengths: int) -> Tensor:
    """Where examples begin and the last one ends; the same for all layers, so made once."""
    return torch.tensor([0, *lengths]).cumsum(0).int()


@lru_cache(maxsize=8)
def _looks(*looks: Span) -> Tensor:
    """As the kernels take them; the same for all layers too."""
    return torch.tensor(looks, dtype=torch.int32)


def _by_units(qkv: Tensor, size: int) -> bool:
    """Whether attention goes by blocks: of bfloat16, and heads of whole blocks."""
    return has_units() and qkv.dtype == torch.bfloat16 and size % UNITS_TAKE == 0


def _call(name: str, like: Tensor, *values: Value) -> None:
    """The kernel `name` for the format of `like`. Raises MemoryError where it found no memory to work in."""
    only_bfloat16 = name.endswith("_by_units") or name in UNITS_ONLY
    call(library(), name if only_bfloat16 else f"{name}_{NAMES[like.dtype]}", *values)
