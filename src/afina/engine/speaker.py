"""Answering with the decoder's own layers: a cache of keys and values, fused products, weights in the format that is fastest.

At batch 1 reading the weights is the limit, so answers may be computed with weights of 8 bits, one scale an output
(symmetric, largest value 127; Dettmers et al. 2022, section 2). Prompts are read together, end to end; then one token a
row at a time. Knows nothing of text: token ids in, scores out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from afina.engine import native, segments, shapes
from afina.engine.cached import Cached
from afina.engine.decoder import Attention, Decoder, FeedForward, Place
from afina.engine.elementwise import Norm
from afina.engine.native import steps
from afina.engine.segments import Heads

Form = Literal["float32", "bfloat16", "int8"]
DTYPES: dict[Form, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FIRST_ROOM = 256
MOVING_ROPES = frozenset({"dynamic", "longrope"})
"""Rotary positions that change with the length of the whole text; such models answer through transformers."""


class Stored:
    """A matrix (and bias) whose weights are kept in `form`; in place of a Projection where nothing is trained.

    int8: y = (x · Qᵀ) · scale, one scale an output. A few rows are computed by a kernel of ours that reads the weights as they
    are stored; for many, int8 weights are widened to the format of x, which holds them exactly.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, form: Form) -> None:
        self.scale: Tensor | None = None
        self.bias = None if bias is None else bias.detach().float()
        if form == "int8":
            wide = weight.detach().float()
            self.scale = wide.abs().amax(dim=1).clamp_(min=1e-12).div_(127.0)
            self.weight = wide.div(self.scale[:, None]).round_().to(torch.int8)
        else:
            self.weight = weight.detach().to(DTYPES[form]).contiguous()
        self.matrix = steps.Matrix.of(self.weight, self.scale, self.bias)

    def forward(
        self, x: Tensor, add: Tensor | None = None, keep: bool = False, out: None = None
    ) -> tuple[Tensor, None]:
        """x (T, in) → y (T, out) (+ `add`), as a Projection does, always in memory of its own."""
        rows = x.shape[0]
        if self._kernel_serves(rows):
            y = steps.multiply(x.float().contiguous(), self.matrix, self.weight.shape[0]).to(x.dtype)
            return (y if add is None else y.add_(add)), None
        x = x if rows == 1 else F.pad(x, (0, 0, 0, -rows % shapes.multiple(x.dtype)))
        if self.scale is None:
            y = (x.to(self.weight.dtype) @ self.weight.t())[:rows].to(x.dtype)
        elif rows <= steps.FEW_ROWS and x.dtype == torch.bfloat16:
            y = torch._weight_int8pack_mm(x.contiguous(), self.weight, self.scale.to(x.dtype))[:rows]
        else:
            y = (x @ steps.unpack(self.weight, x.dtype).t())[:rows].mul_(self.scale)
        if self.bias is not None:
            y += self.bias
        return (y if add is None else y.add_(add)), None

    def _kernel_serves(self, rows: int) -> bool:
        return rows <= (1 if self.weight.dtype == torch.bfloat16 else steps.FEW_ROWS) and native.library() is not None

    def refresh(self) -> None:
        """Nothing here ever changes."""


class Speaker:
    """Scores of the next token, for one or several rows.

    decoder: its layers as they are (a model in training answers with its present weights); with `form` they are replaced
    by layers with weights in that format, for good, and `dtype` is the format of what lies between them. head: hidden states
    (N, d) → float32 scores (N, V). Raises ValueError for models that this cannot answer with.
    """

    def __init__(
        self,
        decoder: Decoder,
        head: Callable[[Tensor], Tensor],
        form: Form | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if decoder.rope in MOVING_ROPES:
            raise ValueError(f"rotary positions of kind {decoder.rope}")
        self._decoder, self._head = decoder, head
        if form is not None:
            decoder.layers = [((_attention(one, form), _after(two, form)), kind) for (one, two), kind in decoder.layers]
            decoder.narrow(dtype)
        self._layers = [(attention, after, kind) for (attention, after), kind in decoder.layers]
        self._turns: dict[str | None, tuple[Tensor, Tensor]] = {}
        self._by_steps = form is not None and native.library() is not None and steps.serves(dtype)
        self._steps: steps.Steps | None = None
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._lengths = torch.zeros(0, dtype=torch.long)
        self.device = torch.device("cpu")

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts (each at least one token), forgetting what was before; the scores (rows, V) of what follows."""
        self._decoder.refresh()
        lengths = [len(prompt) for prompt in prompts]
        self._lengths = torch.tensor(lengths)
        self._room(max(lengths) + 1, rows=len(prompts), anew=True)
        x = self._decoder.embed(torch.tensor([token for prompt in prompts for token in prompt]))
        positions = torch.cat([torch.arange(length) for length in lengths])
        for index, (attention, after, kind) in enumerate(self._layers):
            place = self._place(kind, positions, lengths)
            qkv = attention.project(x, place)
            _, k, v = torch.split(qkv, attention.heads.widths, dim=1)
            for cache, part in ((self._keys[index], k), (self._values[index], v)):
                for row, each in enumerate(torch.split(part, lengths)):
                    cache[row, :, : lengths[row]] = segments.split_heads(each, attention.heads.size).transpose(0, 1)
            out, _ = segments.attend(qkv, attention.heads, lengths)
            x = after.forward(attention.finish(x, out), place, keep=False)[0]
        return self._scores(x[self._lengths.cumsum(0) - 1])

    @torch.inference_mode()
    def next(self, tokens: Sequence[int]) -> Tensor:
        """One more token for every row; the scores (rows, V) of what follows."""
        positions = self._lengths
        self._room(int(positions.max()) + 1, rows=len(tokens))
        x = self._decoder.embed(torch.tensor(list(tokens)))
        if self._by_steps and len(tokens) == 1:
            self._steps = self._steps or self._ready()
            self._lengths = positions + 1
            return self._scores(self._steps.take(x, int(positions)))
        step = _Step(positions, x.dtype)
        places = {kind: self._place(kind, positions, ()) for kind in self._turns}
        for (attention, after, kind), keys, values in zip(self._layers, self._keys, self._values, strict=True):
            qkv = attention.project(x, places[kind])
            q, k, v = torch.split(qkv, attention.heads.widths, dim=1)
            step.put(keys, segments.split_heads(k, attention.heads.size))
            step.put(values, segments.split_heads(v, attention.heads.size))
            out = step.look_back(segments.split_heads(q, attention.heads.size), keys, values, attention.heads)
            x = after.forward(attention.finish(x, out), places[kind], keep=False)[0]
        self._lengths = positions + 1
        return self._scores(x)

    @torch.inference_mode()
    def loss(self, ids: Sequence[int]) -> float:
        """Mean loss in nats of predicting each of `ids` from those before it."""
        self._decoder.refresh()
        x = self._decoder.embed(torch.tensor(ids))
        places: dict[str | None, Place] = {}
        for attention, after, kind in self._layers:
            if kind not in places:
                places[kind] = self._decoder.place(x, torch.arange(len(ids)), [len(ids)], kind)
            x = attention.forward(x, places[kind], keep=False)[0]
            x = after.forward(x, places[kind], keep=False)[0]
        return float(F.cross_entropy(self._scores(x[:-1]), torch.tensor(ids[1:])))

    def _scores(self, x: Tensor) -> Tensor:
        return self._head(self._decoder.last(x).to(x.dtype)).float()

    def _place(self, kind: str | None, positions: Tensor, lengths: Sequence[int]) -> Place:
        cos, sin = self._turns[kind]
        return Place(lengths, cos[positions], sin[positions])

    def _room(self, tokens: int, rows: int, anew: bool = False) -> None:
        """Make room in the cache for `tokens` a row, twice what there was or more."""
        had = 0 if anew or not self._keys else self._keys[0].shape[2]
        if tokens <= had:
            return
        room = max(tokens, 2 * had, FIRST_ROOM)
        like = self._decoder.embed(torch.zeros(1, dtype=torch.long))
        for number, layers in enumerate((self._keys, self._values)):
            grown = []
            for index, (attention, _, _) in enumerate(self._layers):
                cache = like.new_zeros(rows, attention.heads.keys, room, attention.heads.size)
                if had:
                    cache[:, :, :had] = layers[index]
                grown.append(cache)
            if number == 0:
                self._keys = grown
            else:
                self._values = grown
        for kind in {kind for _, _, kind in self._layers}:
            place = self._decoder.place(like, torch.arange(room), (), kind)
            self._turns[kind] = (place.cos, place.sin)
        self._steps = None  # it knew the cache by its addresses

    def _ready(self) -> steps.Steps:
        """All layers as one call. Everything it needs lives as long as the cache does."""
        attention, after, _ = self._layers[0]
        layers = [
            _as_step(attention, after, keys, values, *self._turns[kind])
            for (attention, after, kind), keys, values in zip(self._layers, self._keys, self._values, strict=True)
        ]
        heads = attention.heads
        return steps.Steps(
            layers,
            self._keys[0].dtype,
            width=attention.output.weight.shape[0],
            queries=heads.queries,
            heads=heads.keys,
            size=heads.size,
            inner=after.down.weight.shape[1],
            room=self._keys[0].shape[2],
            gelu=after.activation != "silu",
            eps=attention.norm.eps,
        )


class _Step:
    """One token a row: where it goes in the cache, and what it looks back to. positions (rows,): of the new tokens."""

    def __init__(self, positions: Tensor, dtype: torch.dtype) -> None:
        self._positions, self._dtype = positions, dtype
        self._rows = torch.arange(len(positions))
        self._first, self._last = int(positions.min()), int(positions.max())
        self._masks: dict[int | None, Tensor | None] = {}

    def put(self, cache: Tensor, new: Tensor) -> None:
        """new (rows, heads, size) into cache (rows, heads, room, size)."""
        if len(self._rows) == 1:
            cache[:, :, self._last] = new
        else:
            cache[self._rows, :, self._positions] = new

    def look_back(self, q: Tensor, keys: Tensor, values: Tensor, heads: Heads) -> Tensor:
        """Attention of one query a row, q (rows, heads, size), to the keys up to its position; (rows, heads · size)."""
        first = 0 if heads.window is None else max(0, self._first + 1 - heads.window)
        k, v = keys[:, :, first : self._last + 1], values[:, :, first : self._last + 1]
        if heads.window not in self._masks:
            self._masks[heads.window] = self._mask(first, heads.window)
        mask = self._masks[heads.window]
        if heads.softcap is None:
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            out: Tensor = kernel(q[:, :, None], k, v, 0.0, False, attn_mask=mask, scale=heads.scaling)[0]
            return out.reshape(q.shape[0], -1)
        grouped = q.float().view(q.shape[0], heads.keys, -1, heads.size)
        scores = (grouped @ k.float().transpose(2, 3)).mul_(heads.scaling)
        scores = scores.div_(heads.softcap).tanh_().mul_(heads.softcap)
        if mask is not None:
            scores += mask
        return (scores.softmax(dim=-1) @ v.float()).to(q.dtype).reshape(q.shape[0], -1)

    def _mask(self, first: int, window: int | None) -> Tensor | None:
        """(rows, 1, 1, keys): 0 where a row may look, -inf elsewhere; None for a single row, whose keys all count."""
        if len(self._rows) == 1:
            return None
        at = torch.arange(first, self._last + 1)[None]
        seen = at <= self._positions[:, None]
        if window is not None:
            seen &= at > self._positions[:, None] - window
        return torch.zeros(seen.shape, dtype=self._dtype).masked_fill_(~seen, float("-inf"))[:, None, None]


@dataclass(frozen=True)
class _StoredNorm:
    """A Norm with its scale, float32, made once."""

    scale: Tensor
    eps: float

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        if native.serves(x):
            return native.norm(x, self.scale, self.eps)[0], None
        return F.rms_norm(x, (x.shape[-1],), self.scale.to(x.dtype), self.eps), None


def _plain(norm: Norm | None) -> Any:
    return None if norm is None else _StoredNorm(norm.scale().detach().clone(), norm.eps)


def _stored(projection: Any, form: Form) -> Any:
    return Stored(projection.weight, projection.bias, form)


def _attention(half: Attention, form: Form) -> Attention:
    heads: Any = None if half.head_norms is None else tuple(_plain(norm) for norm in half.head_norms)
    stored = {"qkv": _stored(half.qkv, form), "output": _stored(half.output, form)}
    return replace(half, norm=_plain(half.norm), head_norms=heads, post=_plain(half.post), **stored)


def _after(half: FeedForward, form: Form) -> FeedForward:
    stored = {"gate_up": _stored(half.gate_up, form), "down": _stored(half.down, form)}
    return replace(half, norm=_plain(half.norm), post=_plain(half.post), **stored)


def _as_step(attention: Any, after: Any, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor) -> steps.Layer:
    """A layer as the kernel of a step takes it, by addresses."""
    query_norm, key_norm = attention.head_norms or (None, None)
    norms = {
        "norm": attention.norm,
        "query_norm": query_norm,
        "key_norm": key_norm,
        "post": attention.post,
        "after_norm": after.norm,
        "after_post": after.post,
    }
    matrices = {"qkv": attention.qkv, "output": attention.output, "gate_up": after.gate_up, "down": after.down}
    tensors = {"keys": keys, "values": values, "cosine": cos, "sine": sin}
    return steps.Layer(
        **{name: None if norm is None else norm.scale.data_ptr() for name, norm in norms.items()},
        **{name: stored.matrix for name, stored in matrices.items()},
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        window=attention.heads.window or 0,
        scaling=attention.heads.scaling,
        softcap=attention.heads.softcap or 0.0,
    )


def stored_head(
    weight: Tensor, bias: Tensor | None, form: Form | None, scale: float, softcap: float | None
) -> Callable[[Tensor], Tensor]:
    """The output head as a function of hidden states, its weights in `form` (None: as they are, and no copy of them)."""
    stored = Stored(weight, bias, form or ("float32" if weight.dtype == torch.float32 else "bfloat16"))
    return lambda hidden: _finish_scores(stored.forward(hidden)[0].float(), scale, softcap)


def _finish_scores(scores: Tensor, scale: float, softcap: float | None) -> Tensor:
    """What some families do to the scores after the head."""
    if scale != 1.0:
        scores = scores * scale
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def greedy(speaker: Speaker | Cached, prompts: Sequence[Sequence[int]], stops: set[int], most: int) -> list[list[int]]:
    """The likeliest token each time, for all prompts together, until each has met a stop or has `most` tokens."""
    written: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    scores = speaker.begin(prompts)
    while True:
        chosen = scores.argmax(dim=-1).tolist()
        for row in list(open_rows):
            if chosen[row] in stops:
                open_rows.discard(row)
                continue
            written[row].append(chosen[row])
            if len(written[row]) == most:
                open_rows.discard(row)
        if not open_rows:
            return written
        scores = speaker.next(chosen)
