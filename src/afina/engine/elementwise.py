"""What happens to each token by itself between the products: norms, rotations, gates; forward and backward by hand.

By compiled kernels where this machine has them, else with as few passes over memory as PyTorch's operators allow: results go into
given buffers, and what is cheap is computed again in backward rather than kept. Knows nothing of layers, adapters or autograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from afina.engine import native

ROWS_AT_ONCE = 512
"""Tokens an element-wise chain goes over together, so that what it reads next is still in the cache."""


@dataclass(frozen=True)
class Norm:
    """RMSNorm (Zhang and Sennrich 2019): y = x / √(mean(x²) + eps) · weight, in float32 whatever x is.

    plus_one: Gemma's norms scale by 1 + weight, and round after it rather than before.
    """

    weight: Tensor
    eps: float
    plus_one: bool = False

    def scale(self) -> Tensor:
        """What x / rms is multiplied with, float32."""
        return self.weight.float() + 1.0 if self.plus_one else self.weight.float()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (…, d) → y (…, d), and 1 / rms (…, 1) in float32, which backward needs."""
        if native.serves(x):
            return native.norm(x, self.scale(), self.eps)
        inverse = self.inverse(x)
        return self.apply(x, inverse), inverse

    def inverse(self, x: Tensor) -> Tensor:
        """1 / √(mean(x²) + eps), float32 (…, 1)."""
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()

    def apply(self, x: Tensor, inverse: Tensor) -> Tensor:
        """y again, from x and its 1 / rms."""
        if native.serves(x):
            return native.norm(x, self.scale(), self.eps, inverse)[0]
        if x.dtype == torch.float32:
            return (x * inverse).mul_(self.scale())
        if self.plus_one:
            return (x * inverse).mul_(self.scale()).to(x.dtype)
        return (x * inverse).to(x.dtype).mul_(self.weight)

    def backward(
        self, dy: Tensor, x: Tensor, inverse: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of x (plus `residual`), and of the weight where it is trained.

        With u = x / rms and t = dy · scale: dx = (t - u · mean(t · u)) / rms.
        """
        d_weight = None
        if native.serves(x, dy) and (residual is None or native.serves(x, residual)):
            d_weight = next(iter(self.backward_scale(dy, x, inverse)), None)
            return native.norm_backward(dy, x, self.scale(), inverse, residual), d_weight
        wide = dy.float()
        if self.weight.requires_grad:
            d_weight = (wide * x * inverse).reshape(-1, x.shape[-1]).sum(dim=0).to(self.weight.grad_dtype)
        t = wide * self.scale()
        mean = (t * x).sum(dim=-1, keepdim=True).mul_(inverse.pow(3)).div_(x.shape[-1])
        dx = t.mul_(inverse).sub_(x * mean).to(dy.dtype)
        return dx if residual is None else dx.add_(residual), d_weight

    def backward_scale(self, dy: Tensor, x: Tensor, inverse: Tensor) -> list[Tensor]:
        """The gradient of the weight alone, by a compiled kernel; empty where it is not trained."""
        if not self.weight.requires_grad:
            return []
        return [native.norm_scale_gradient(dy, x, inverse).to(self.weight.grad_dtype)]


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> None:
    """Rotary positions (Su et al. 2021) in place: x (T, heads, size), cos and sin (T, 1, size / 2).

    Pairs are (i, i + size / 2), as in the Hugging Face models. back: the inverse, which is also the gradient.
    """
    if native.serves(cos, sin) and x.dtype == cos.dtype and x.stride()[1:] == (x.shape[2], 1):
        native.rotate(x, cos, sin, back)
        return
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    crossed = first * sin
    if back:
        first.mul_(cos).addcmul_(second, sin)
        second.mul_(cos).sub_(crossed)
    else:
        first.mul_(cos).addcmul_(second, sin, value=-1)
        second.mul_(cos).add_(crossed)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) · up of gate_up (T, 2·inner), gates first (Shazeer 2020, “GLU variants improve Transformer”)."""
    if native.serves(gate_up):
        return native.gated(gate_up, gelu=activation != "silu")
    gate, up = gate_up.chunk(2, dim=-1)
    active = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    return active.mul_(up)


def gated_backward(d_inner: Tensor, gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The gradient of `gate_up`, and act(gate) · up once more, which the next product's gradient needs."""
    if native.serves(gate_up, d_inner):
        return native.gated_backward(d_inner, gate_up, gelu=activation != "silu")
    d_gate_up, inner = torch.empty_like(gate_up), torch.empty_like(d_inner)
    width = d_inner.shape[-1]
    for start in range(0, gate_up.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        gate, up, d = gate_up[rows, :width], gate_up[rows, width:], d_inner[rows]
        active = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        torch.mul(d, active, out=d_gate_up[rows, width:])
        torch.mul(active, up, out=inner[rows])
        through = torch.mul(d, up, out=active)
        if activation == "silu":
            torch.ops.aten.silu_backward.grad_input(through, gate, grad_input=d_gate_up[rows, :width])
        else:
            torch.ops.aten.gelu_backward.grad_input(
                through, gate, approximate="tanh", grad_input=d_gate_up[rows, :width]
            )
    return d_gate_up, inner
