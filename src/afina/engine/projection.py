"""Linear layers that read the same input, computed as one product: q, k and v; gate and up; or a single one.

Over the model's and PEFT's own parameters, so that saving, loading and the optimizer see nothing new: weights lie end to
end in one block of memory of which each layer's weight is a view. LoRA (Hu et al. 2021, section 4.1) costs

    merged   y = x·W'ᵀ, dx = dy·W' with W' = W + s·B·A written for this product  (float32, many tokens)
    beside   y = x·Wᵀ + z·B'ᵀ, dx = dy·W + dz·A               (few tokens, and bfloat16, where W' would round B·A away)

with z = x·Aᵀ, dz = dy·B', B' = s·B, and in both dB = s·dyᵀ·z, dA = dzᵀ·x. Knows nothing of autograd: `decoder.py` calls
forward and backward from functions of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from afina.engine.lora import ADAPTER, is_plain
from afina.engine.native import halves
from afina.engine.native.adapters import Beside, Learned, learned, take
from afina.engine.products import Product, Thin, on_units, over_all_tokens, over_tokens, padded
from afina.engine.rooms import Spare


class Projection:
    """`layers` (nn.Linear, or PEFT's LoRA around one) as one product. Raises ValueError where a layer is of another kind.

    sizes: outputs of each layer; parameters: what is trained, in the order in which `backward` gives gradients; trains_itself: whether
    there is more among them than adapters; by_kernels: whether none of its products is PyTorch's; ahead: x → y, z; back: dy → dx, dz.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        bases = [_base(layer) for layer in layers]
        self.sizes = [int(base.weight.shape[0]) for base in bases]
        self._starts = [sum(self.sizes[:index]) for index in range(len(bases))]
        self.bias = _together([base.bias for base in bases])
        self.weight = _together([base.weight for base in bases])
        self.blocks = [block.data_ptr() for block in (self.weight, self.bias) if block is not None]
        self._trains_base = [base.weight.requires_grad for base in bases]
        adapters = [_adapter(layer) for layer in layers]
        ranks = [0 if each is None else int(each[0].shape[0]) for each in adapters]
        ends = [sum(ranks[: index + 1]) for index in range(len(ranks))]
        self._adapters = [
            Beside(*each, slice(end - rank, end), slice(start, start + size))
            for each, rank, end, start, size in zip(adapters, ranks, ends, self._starts, self.sizes, strict=True)
            if each is not None
        ]
        self.has_adapter = bool(self._adapters)
        if self.has_adapter and any(self._trains_base):
            raise ValueError("a layer is trained itself and has an adapter")
        self.parameters: list[Tensor] = [
            *(base.weight for base in bases if base.weight.requires_grad),
            *(base.bias for base in bases if base.bias is not None and base.bias.requires_grad),
            *(factor for each in self._adapters for factor in (each.a, each.b)),
        ]
        self._spare = Spare()
        self._biases = [base.bias is not None and base.bias.requires_grad for base in bases]
        self._trained_biases = [base.bias for base, trained in zip(bases, self._biases, strict=True) if trained]
        self.trains_itself = any(self._trains_base) or any(self._biases)
        down = up = None
        if self.has_adapter:
            total, inputs = self.weight.shape
            rank = padded(ends[-1], self.weight.dtype)
            places = [(each.ranks, each.outputs) for each in self._adapters]
            up = Thin(self.weight.new_zeros(rank, total), places)  # all s·Bᵀ, each at its layer's outputs
            # all A, one after the other
            down = Thin(self.weight.new_zeros(rank, inputs), [(slice(0, ends[-1]), slice(0, inputs))])
            self._up, self._down = up, down
        merged = self._merged if self.has_adapter and self.weight.dtype == torch.float32 else None
        self.ahead = Product(self.weight, True, down, up, self.bias, merged)
        self.back = Product(self.weight, False, up, down, merged=merged)
        self.by_kernels = not self.trains_itself and self.ahead.factor is not None

    def lent_to(self, spare: Spare) -> list[Tensor]:
        """Let the gradients of its weights lie in `spare`; returns the weights that are trained."""
        self._spare = spare
        return self.parameters[: sum(self._trains_base)]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take in what has changed in the adapters; to be called before the first product and after every change."""
        if not self.has_adapter:
            return
        if (
            self._down.woven
            and self._up.woven
            and all(each.a.dtype == each.b.dtype == torch.float32 for each in self._adapters)
        ):
            take(self._adapters, (self._down.matrix, *self._down.woven), (self._up.matrix, *self._up.woven))
            return
        for each in self._adapters:
            self._down.matrix[each.ranks] = each.a
            torch.mul(each.b.t(), each.scaling, out=self._up.matrix[each.ranks, each.outputs])
        self._down.changed()
        self._up.changed()

    def _merged(self) -> Tensor:
        """W' (Σ out, in), of its own: one at a time, where a copy of all weights would take as much as the model."""
        whole = torch.empty_like(self.weight) if len(self._adapters) == len(self.sizes) else self.weight.clone()
        for each in self._adapters:
            own = self.weight[each.outputs]
            torch.addmm(own, each.b, each.a, alpha=each.scaling, out=whole[each.outputs])
        return whole

    def forward(
        self, x: Tensor, add: Tensor | None = None, keep: bool = True, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x (T, in) → y (T, Σ out) (+ `add`), in `out` where given, and z, which backward needs (None without adapters, or
        where `keep` is False and nothing else needs it)."""
        return self.ahead(x, add, out, keep)

    def backward(self, dy: Tensor, x: Tensor, z: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The gradients of x (T, in), from that of y (T, Σ out), and of `parameters`."""
        if z is not None and self.back.factor is not None and on_units(dy) and on_units(x):
            given, found = learned(self._adapters, z)
            dx = halves.project_backward(dy, self.back.factor, x, given)
            return dx, self.gradients(dy, x, found)
        dx, dz = self.backward_input(dy)
        return dx, self.backward_parameters(dy, x, z, dz)

    def backward_input(self, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradient of x (T, in) from that of y (T, Σ out); and dz, where it was needed for that."""
        return self.back(dy)

    def backward_parameters(self, dy: Tensor, x: Tensor, z: Tensor | None, dz: Tensor | None = None) -> list[Tensor]:
        """The gradients of `parameters`; `dz` from `backward_input` saves computing it again."""
        if z is None or not self.has_adapter:
            return self.gradients(dy, x)
        dz = self._up.to_rank(dy) if dz is None else dz
        if self._up.woven:
            up = over_tokens(z, dy)  # more than is needed, in one go over dy
            ups = [up[each.ranks, each.outputs] for each in self._adapters]
        else:
            ups = [z[:, each.ranks].t() @ dy[:, each.outputs] for each in self._adapters]
        down, found = over_tokens(dz, x), []
        for each, d_up in zip(self._adapters, ups, strict=True):
            # in the order in which B lies, else autograd copies it
            found += [
                down[each.ranks],
                torch.mul(d_up.t().to(each.b.dtype), each.scaling, out=torch.empty_like(each.b)),
            ]
        return self.gradients(dy, x, found)

    def learned(self, z: Tensor) -> tuple[Learned | None, list[Tensor]]:
        """For kernels that make the gradients of adapters beside their way back: where to, and these (none without adapters)."""
        return learned(self._adapters, z) if self._adapters else (None, [])

    def gradients(
        self,
        dy: Tensor | None,
        x: Tensor | None,
        found: Sequence[Tensor] = (),
        woven: tuple[bool, bool] = (False, False),
    ) -> list[Tensor]:
        """Those of `parameters`, where `found` are those of A and B of each adapter; dy and x (woven: which of them lie in woven blocks) are
        asked for only where `trains_itself`."""
        own = [factor for each in self._adapters for factor in (each.a, each.b)]
        grads = self._of_base(dy, x, woven) if dy is not None and x is not None else []
        return grads + [grad.to(factor.dtype) for grad, factor in zip(found, own, strict=True)]

    def _of_base(self, dy: Tensor, x: Tensor, woven: tuple[bool, bool]) -> list[Tensor]:
        grads: list[Tensor] = []
        if any(self._trains_base):
            whole = self._spare.take(self.weight.shape, self.parameters[0].grad_dtype or self.weight.dtype)
            grads += self._cut(over_all_tokens(dy, x, whole, woven=woven), self._trains_base)
        if any(self._biases):
            rows = halves.in_rows(dy) if woven[0] else dy
            grads += self._cut(rows.sum(dim=0, dtype=self._trained_biases[0].grad_dtype), self._biases)
        return grads

    def _cut(self, whole: Tensor, chosen: Sequence[bool]) -> list[Tensor]:
        """The rows of the chosen layers."""
        parts = zip(self._starts, self.sizes, chosen, strict=True)
        return [whole[start : start + size] for start, size, wanted in parts if wanted]


def _base(layer: Any) -> nn.Linear:
    base = getattr(layer, "base_layer", layer)
    if type(base) is not nn.Linear or (base is not layer and not is_plain(layer)):
        raise ValueError(f"not a plain linear layer: {type(layer).__name__}")
    return base


def _adapter(layer: Any) -> tuple[nn.Parameter, nn.Parameter, float] | None:
    if not hasattr(layer, "base_layer"):
        return None
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, float(layer.scaling[ADAPTER])


def _together(tensors: Sequence[Any]) -> Any:
    """The tensors end to end in one block of their own, each being then a view of its part; None where all are None."""
    if all(tensor is None for tensor in tensors):
        return None
    if any(tensor is None for tensor in tensors):
        raise ValueError("some layers have a bias and some have none")
    whole = torch.cat([tensor.detach() for tensor in tensors])
    start = 0
    for tensor in tensors:
        tensor.data = whole[start : start + tensor.shape[0]]
        start += tensor.shape[0]
    return whole
