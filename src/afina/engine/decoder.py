"""The layers of Llama, Mistral, Qwen and Gemma models with forward and backward by hand, over examples end to end.

Two functions of autograd's a layer, attention and feed-forward, each with its norm and its residual sum: little is kept for
backward (a token's input, projections and output, about 10 × the hidden size), what is cheap is computed again, and
nothing is copied between the products. Weights, adapters and their gradients are the model's own parameters; `model.py`
decides whether a model is computed here, and the tests hold the result to transformers' and PEFT's.

Only for the processor: graphics cards have fused kernels that are reached through transformers' own layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from afina.engine import elementwise, native, segments, shapes
from afina.engine.batches import Row
from afina.engine.elementwise import Norm
from afina.engine.native import halves as at_once
from afina.engine.native.halves import Factor
from afina.engine.projection import Projection
from afina.engine.rooms import Room, Spare
from afina.engine.segments import Heads, Look
from afina.engine.words import look_up

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"})
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Place:
    """Where the tokens of a row stand: the lengths of its examples, and cos and sin (T, 1, size / 2) of the positions;
    where examples share a beginning, what they look back at, and the positions (T,)."""

    lengths: Sequence[int]
    cos: Tensor
    sin: Tensor
    looks: Sequence[Look] = ()
    positions: Tensor | None = None


@dataclass(frozen=True)
class Attention:
    """The attention half of a layer. post: a norm of its result before the residual sum (Gemma 2 and 3)."""

    norm: Norm
    qkv: Projection
    head_norms: tuple[Norm, Norm] | None
    heads: Heads
    output: Projection
    post: Norm | None

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained, in the order of `backward`'s gradients."""
        between = list(self.head_norms or ())
        return [
            *_trained(self.norm),
            *self.qkv.parameters,
            *_trained(*between),
            *self.output.parameters,
            *_trained(self.post),
        ]

    @property
    def blocks(self) -> list[int]:
        """The addresses of its fused weights."""
        return [*self.qkv.blocks, *self.output.blocks]

    def lent_to(self, spare: Spare) -> list[Tensor]:
        """Let gradients of its products' weights lie in `spare`; returns these weights."""
        return [*self.qkv.lent_to(spare), *self.output.lent_to(spare)]

    @property
    def by_kernels(self) -> bool:
        """Whether none of its products is PyTorch's, which are compiled for each number of tokens."""
        return self.qkv.by_kernels and self.output.by_kernels

    def refresh(self) -> None:
        """Take in changed adapters."""
        self.qkv.refresh()
        self.output.refresh()

    def forward(self, x: Tensor, place: Place, keep: bool, room: Room | None = None) -> tuple[Tensor, Any]:
        """x (T, d) → x + attention(norm(x)), and what backward needs, in `room` where given."""
        inverse, qkv, z, raw = self._project(x, place, keep, room)
        into = None if room is None else room.take("out", x, self.heads.widths[0])
        out, sums = segments.attend(qkv, self.heads, place.lengths, place.looks, place.positions, into)
        y, z_out, after = _residual(x, out, self.output, self.post, keep, room)
        return y, (inverse, qkv, z, raw, out, sums, z_out, after)

    def project(self, x: Tensor, place: Place) -> Tensor:
        """The first part of `forward`: queries, keys and values of x, turned to their places."""
        return self._project(x, place, keep=False)[1]

    def finish(self, x: Tensor, out: Tensor) -> Tensor:
        """The last part of `forward`: x + what the heads found."""
        return _residual(x, out, self.output, self.post, keep=False)[0]

    def _project(
        self, x: Tensor, place: Place, keep: bool, room: Room | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        z: Tensor | None
        into = None if room is None else room.take("qkv", x, sum(self.heads.widths))
        factors = _factors(x, self.norm, self.qkv)
        if factors:
            scale, eps = self.norm.scale(), self.norm.eps
            qkv, z, inverse = at_once.first_half(x, scale, eps, factors[0], self._turn(place), into)
        else:
            h, inverse = self.norm.forward(x)
            qkv, z = self.qkv.forward(h, keep=keep, out=into)
        raw = self._norm_heads(qkv) if self.head_norms else None
        if raw or not factors:
            elementwise.rotate(self._turned(qkv), place.cos, place.sin)
        return inverse, qkv, z, raw

    def _turn(self, place: Place) -> tuple[Tensor, Tensor, int, int]:
        """What the kernels of half a layer turn: cos, sin, how many heads (none where their norms come first), and their size."""
        queries, keys, _ = self.heads.widths
        return place.cos, place.sin, 0 if self.head_norms else (queries + keys) // self.heads.size, self.heads.size

    def backward(
        self, dy: Tensor, x: Tensor, kept: Any, place: Place, need_input: bool
    ) -> tuple[Tensor | None, list[Any]]:
        """The gradients of x and of `parameters`."""
        dx: Tensor | None
        inverse, qkv, z, raw, out, sums, z_out, after = kept
        d_out, of_output, of_post = _residual_backward(dy, out, z_out, after, self.output, self.post)
        d_qkv = segments.attend_backward(d_out, qkv, out, sums, self.heads, place.lengths, place.looks, place.positions)
        factors = _factors(x, self.norm, self.qkv, back=True) if need_input else []
        if raw or not factors:
            elementwise.rotate(self._turned(d_qkv), place.cos, place.sin, back=True)
        of_heads = self._norm_heads_backward(d_qkv, raw) if raw is not None else []
        if factors:
            scale, turn, more = self.norm.scale(), self._turn(place), _trains_more(self.norm, self.qkv)
            learned, found = self.qkv.learned(z)
            given = d_qkv, x, scale, inverse, factors[0], turn, dy, learned
            dx, others = at_once.first_half_backward(*given, others=more)
            of_norm = self.norm.backward_scale(others.d_h, x, inverse) if others else []
            of_qkv = self.qkv.gradients(d_qkv, others.h if others else None, found)
        else:
            dx, of_norm, of_qkv = _norm_backward(dy, d_qkv, x, inverse, z, self.norm, self.qkv, need_input)
        return dx, [*of_norm, *of_qkv, *of_heads, *of_output, *of_post]

    def _turned(self, qkv: Tensor) -> Tensor:
        """The queries and keys of `qkv` as (T, heads, size)."""
        queries, keys, _ = self.heads.widths
        return segments.split_heads(qkv[:, : queries + keys], self.heads.size)

    def _parts(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        turned = self._turned(qkv)
        return turned[:, : self.heads.queries], turned[:, self.heads.queries :]

    def _norm_heads(self, qkv: Tensor) -> Any:
        """Norm every head's queries and keys in place; returns what they were, and their 1 / rms."""
        raw = []
        for norm, part in zip(self.head_norms or (), self._parts(qkv), strict=True):
            before = part.clone()
            after, inverse = norm.forward(before)
            part.copy_(after)
            raw.append((before, inverse))
        return raw

    def _norm_heads_backward(self, d_qkv: Tensor, raw: Any) -> list[Tensor]:
        grads = []
        for norm, part, (before, inverse) in zip(self.head_norms or (), self._parts(d_qkv), raw, strict=True):
            d_before, d_weight = norm.backward(part, before, inverse)
            part.copy_(d_before)
            if d_weight is not None:
                grads.append(d_weight)
        return grads


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward half of a layer."""

    norm: Norm
    gate_up: Projection
    activation: str
    down: Projection
    post: Norm | None

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained, in the order of `backward`'s gradients."""
        return [*_trained(self.norm), *self.gate_up.parameters, *self.down.parameters, *_trained(self.post)]

    @property
    def blocks(self) -> list[int]:
        """The addresses of its fused weights."""
        return [*self.gate_up.blocks, *self.down.blocks]

    def lent_to(self, spare: Spare) -> list[Tensor]:
        """Let gradients of its products' weights lie in `spare`; returns these weights."""
        return [*self.gate_up.lent_to(spare), *self.down.lent_to(spare)]

    @property
    def by_kernels(self) -> bool:
        """Whether none of its products is PyTorch's, which are compiled for each number of tokens."""
        return self.gate_up.by_kernels and self.down.by_kernels

    def refresh(self) -> None:
        """Take in changed adapters."""
        self.gate_up.refresh()
        self.down.refresh()

    def forward(self, x: Tensor, place: Place, keep: bool, room: Room | None = None) -> tuple[Tensor, Any]:
        """x (T, d) → x + down(act(gate) · up), and what backward needs, in `room` where given."""
        z: Tensor | None
        into = None if room is None else room.take("gate_up", x, sum(self.gate_up.sizes))
        factors = [] if self.post else _factors(x, self.norm, self.gate_up, self.down)
        if factors:
            gate_up = x.new_empty(x.shape[0], sum(self.gate_up.sizes)) if into is None else into
            scale, out = self.norm.scale(), None if room is None else room.take("y", x, x.shape[1])
            gelu = self.activation != "silu"
            y, z, z_last, inverse = at_once.feed_forward(x, scale, self.norm.eps, factors, gelu, gate_up, out)
            return y, (inverse, gate_up, z, z_last, None)
        h, inverse = self.norm.forward(x)
        gate_up, z = self.gate_up.forward(h, keep=keep, out=into)
        inner = elementwise.gated(gate_up, self.activation)
        y, z_down, after = _residual(x, inner, self.down, self.post, keep, room)
        return y, (inverse, gate_up, z, z_down, after)

    def backward(
        self, dy: Tensor, x: Tensor, kept: Any, place: Place, need_input: bool
    ) -> tuple[Tensor | None, list[Any]]:
        """The gradients of x and of `parameters`."""
        dx: Tensor | None
        inverse, gate_up, z, z_down, after = kept
        factors = [] if self.post else _factors(x, self.norm, self.down, self.gate_up, back=True)
        if factors:
            gelu, scale = self.activation != "silu", self.norm.scale()
            more = _trains_more(self.norm, self.gate_up, self.down)
            learned, found_up = self.gate_up.learned(z)
            learned_down, found_down = self.down.learned(z_down)
            given = dy, x, scale, inverse, factors, gelu, gate_up, (learned_down, learned)
            dx, others = at_once.feed_forward_backward(*given, others=more)
            of_norm = self.norm.backward_scale(others.d_h, x, inverse) if others else []
            h, _, inner, d_gate_up = others or (None,) * 4
            of_up = self.gate_up.gradients(d_gate_up, h, found_up, woven=(True, False))
            return dx, [*of_norm, *of_up, *self.down.gradients(dy, inner, found_down, woven=(False, True))]
        d_result, of_post = _post_backward(dy, after, self.post)
        # the product's input comes out of the gate's backward, so the two halves of its gradient are taken apart
        d_inner, dz = self.down.backward_input(d_result)
        d_gate_up, inner = elementwise.gated_backward(d_inner, gate_up, self.activation)
        of_down = self.down.backward_parameters(d_result, inner, z_down, dz)
        dx, of_norm, of_up = _norm_backward(dy, d_gate_up, x, inverse, z, self.norm, self.gate_up, need_input)
        return dx, [*of_norm, *of_up, *of_down, *of_post]


def _factors(x: Tensor, norm: Norm, *projections: Any, back: bool = False) -> list[Factor]:
    """What the kernels that do half a layer at once take for these; empty where there are none for x (T, d)."""
    if x.dtype != torch.bfloat16 or x.shape[0] % native.UNITS_TAKE or type(norm) is not Norm or not native.serves(x):
        return []
    found = [(each.back if back else each.ahead).factor for each in projections]
    return [] if None in found else found


def _trains_more(norm: Norm, *projections: Projection) -> bool:
    """Whether more is trained than adapters."""
    return norm.weight.requires_grad or any(each.trains_itself for each in projections)


def _trained(*norms: Norm | None) -> list[Tensor]:
    return [norm.weight for norm in norms if norm is not None and norm.weight.requires_grad]


def _residual(
    x: Tensor, inner: Tensor, last: Projection, post: Norm | None, keep: bool, room: Room | None = None
) -> tuple[Tensor, Any, Any]:
    """x + [post](last(inner)); with what backward needs: z, and the result before its norm with its 1 / rms."""
    into = None if room is None else room.take("y", x, x.shape[1])
    if post is None:
        y, z = last.forward(inner, add=x, keep=keep, out=into)
        return y, z, None
    result, z = last.forward(inner, keep=keep, out=into)
    normed, inverse = post.forward(result)
    return normed.add_(x), z, (result, inverse)


def _post_backward(dy: Tensor, after: Any, post: Norm | None) -> tuple[Tensor, list[Tensor]]:
    if post is None:
        return dy, []
    d_result, d_weight = post.backward(dy, *after)
    return d_result, [] if d_weight is None else [d_weight]


def _residual_backward(
    dy: Tensor, inner: Tensor, z: Tensor | None, after: Any, last: Projection, post: Norm | None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradients of `inner`, of `last` and of `post`."""
    d_result, of_post = _post_backward(dy, after, post)
    d_inner, of_last = last.backward(d_result, inner, z)
    return d_inner, of_last, of_post


def _norm_backward(
    dy: Tensor, d_first: Tensor, x: Tensor, inverse: Tensor, z: Tensor | None, norm: Norm, first: Projection, need: bool
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """Back through the first product and the norm before it, the residual's gradient added: those of x, norm, product."""
    if not (need or norm.weight.requires_grad):
        return None, [], first.backward_parameters(d_first, norm.apply(x, inverse), z)
    d_h, of_first = first.backward(d_first, norm.apply(x, inverse), z)
    dx, d_weight = norm.backward(d_h, x, inverse, residual=dy)
    return dx, [] if d_weight is None else [d_weight], of_first


class _Half(torch.autograd.Function):
    """Half a layer for autograd: x and the parameters in, x plus something out."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, half: Any, place: Place, again: bool, room: Room, spare: Spare, *parameters: Tensor
    ) -> Tensor:
        y: Tensor
        ctx.taken = None if again else room.begin()
        ctx.room, ctx.spare = room, spare
        y, kept = half.forward(x, place, keep=not again, room=room if ctx.taken else None)
        ctx.half, ctx.place, ctx.kept = half, place, None if again else kept
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        kept = ctx.half.forward(x, ctx.place, keep=True)[1] if ctx.kept is None else ctx.kept
        dx, grads = ctx.half.backward(grad_outputs[0], x, kept, ctx.place, ctx.needs_input_grad[0])
        if ctx.taken:
            ctx.spare.give(ctx.room)
        ctx.kept = ctx.taken = None
        return (dx, None, None, None, None, None, *grads)


class Decoder:
    """The decoder of transformers' `model` (with PEFT's plain LoRA layers, or none), computed here.

    recompute: keep only the input of every half layer and compute the rest again in backward (activation checkpointing).
    changed: to be set whenever the weights were changed from outside (fused optimizers leave no trace in a tensor's
    version). layers: ((attention, feed-forward), which rotary positions) of each; rope: the kind of those; multiple: what the number
    of tokens should be a multiple of. Raises
    ValueError for a model that is put together otherwise than this knows.
    """

    def __init__(self, model: Any) -> None:
        inner = model.get_decoder()
        config = model.config.get_text_config()
        if config.model_type not in FAMILIES:
            raise ValueError(f"unknown family {config.model_type}")
        if float(getattr(config, "attention_dropout", 0.0) or 0.0) > 0 and model.training:
            raise ValueError("attention dropout")
        if getattr(config, "use_bidirectional_attention", False):
            raise ValueError("attention in both directions")
        self.recompute = False
        self.changed = True
        self._dtype: torch.dtype | None = None
        self._rooms: dict[int, Room] = {}
        self._spare = Spare()
        self._tokens = 0
        self.rope = str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))
        self._embed, self._rotary, self._last = inner.embed_tokens, inner.rotary_emb, inner.norm
        types = getattr(config, "layer_types", None) if config.model_type == "gemma3_text" else None
        self.layers = []
        for index, layer in enumerate(inner.layers):
            both = (_attention(layer, config), _feed_forward(layer, config))
            self.layers.append((both, types[index] if types else None))
        halves = [half for both, _ in self.layers for half in both]
        self._weights = [weight for half in halves for weight in half.lent_to(self._spare)]
        by_kernels = all(half.by_kernels for half in halves)
        self.multiple = native.UNITS_TAKE if by_kernels else shapes.multiple(model.dtype)
        _own(model, {at for half in halves for at in half.blocks})

    def hidden(self, row: Row) -> Tensor:
        """The last hidden states (T, d) of the examples in `row`, after the last norm."""
        self.refresh()
        if torch.is_grad_enabled():
            self._spare.back(self._weights)
        x = self.embed(row.ids)
        places: dict[str | None, Place] = {}
        for halves, kind in self.layers:
            if kind not in places:
                place = self.place(x, row.positions, row.lengths, kind)
                places[kind] = replace(place, looks=row.looks, positions=row.positions)
            for half in halves:
                if torch.is_grad_enabled():
                    room = self._rooms.setdefault(id(half), Room(self._tokens))
                    x = _Half.apply(x, half, places[kind], self.recompute, room, self._spare, *half.parameters)  # type: ignore[no-untyped-call]
                else:
                    x = half.forward(x, places[kind], keep=False)[0]
        return self.last(x)

    def reserve(self, tokens: int) -> None:
        """Let what is kept for backward have memory for rows of `tokens`, and forget what it had."""
        self._rooms.clear()
        self._tokens = tokens + -tokens % self.multiple

    def refresh(self) -> None:
        """Take in what was changed from outside."""
        if self.changed:
            for halves, _ in self.layers:
                for half in halves:
                    half.refresh()
            self.changed = False

    def narrow(self, dtype: torch.dtype) -> None:
        """Let what enters the layers have the format `dtype` from here on."""
        self._dtype = dtype

    def embed(self, ids: Tensor) -> Tensor:
        """ids (T,) → (T, d)."""
        x = look_up(self._embed, ids)
        return x if self._dtype is None else x.to(self._dtype)

    def last(self, x: Tensor) -> Tensor:
        """The last norm, x (T, d)."""
        y: Tensor = self._last(x[None])[0]
        return y

    def place(self, x: Tensor, positions: Tensor, lengths: Sequence[int], kind: str | None) -> Place:
        """Where tokens at `positions` stand, for layers of `kind`; x gives the number format."""
        more = () if kind is None else (kind,)
        cos, sin = self._rotary(x[None], positions[None], *more)
        half = cos.shape[-1] // 2
        return Place(lengths, cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())


def _own(model: Any, blocks: set[int]) -> None:
    """Copy the weights that are not yet in `blocks` (addresses): all of a mapped file stays in memory as long as one
    weight still lies in it, although most were copied out of it."""
    for part in model.parameters():
        if part.untyped_storage().data_ptr() not in blocks:
            part.data = part.data.clone()


def _norm(module: nn.Module) -> Norm:
    known: Any = module
    plus_one = type(module).__name__.startswith("Gemma")
    eps = known.eps if plus_one else known.variance_epsilon
    return Norm(known.weight, float(eps), plus_one)


def _attention(layer: Any, config: Any) -> Attention:
    own = layer.self_attn
    size = int(own.head_dim)
    window = getattr(own, "sliding_window", None)
    if config.model_type == "mistral":
        window = getattr(config, "sliding_window", None)
    softcap = getattr(own, "attn_logit_softcapping", None)
    qkv = Projection([own.q_proj, own.k_proj, own.v_proj])
    heads = Heads(qkv.sizes[0] // size, qkv.sizes[1] // size, size, float(own.scaling), window, softcap)
    norms = (_norm(own.q_norm), _norm(own.k_norm)) if hasattr(own, "q_norm") else None
    post = _norm(layer.post_attention_layernorm) if hasattr(layer, "pre_feedforward_layernorm") else None
    return Attention(_norm(layer.input_layernorm), qkv, norms, heads, Projection([own.o_proj]), post)


def _feed_forward(layer: Any, config: Any) -> FeedForward:
    own = layer.mlp
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name}")
    two = hasattr(layer, "pre_feedforward_layernorm")
    norm = layer.pre_feedforward_layernorm if two else layer.post_attention_layernorm
    post = _norm(layer.post_feedforward_layernorm) if two else None
    gate_up = Projection([own.gate_proj, own.up_proj])
    return FeedForward(_norm(norm), gate_up, ACTIVATIONS[name], Projection([own.down_proj]), post)
