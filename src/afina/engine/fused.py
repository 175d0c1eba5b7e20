"""The element-wise parts of transformers' layers, each compiled into one kernel: norms, gates, rotations.

On graphics cards these read and write the same tokens many times over. Whole layers are not compiled: every new length of a
row would compile them again. Each function is tried out, forward and backward, before layers are given it, and one that
fails later is replaced by itself uncompiled. On processors our own layers do the same in few passes (`elementwise.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from afina.engine import device as devices

ROTATE = "apply_rotary_pos_emb"
TRIED_TOKENS = 24
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of Llama, Mistral and Qwen: x (…, d) in float32, rounded, then scaled."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def norm_plus_one(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of Gemma: scaled by 1 + weight, then rounded."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * (1.0 + weight.float())).to(x.dtype)


def gate_silu(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU's product."""
    return F.silu(gate) * up


def gate_gelu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    """GeGLU's product, with the approximation by tanh."""
    return F.gelu(gate, approximate="tanh") * up


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions: q and k (1, heads, T, size), cos and sin (1, T, size)."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + _turned(q) * sin, k * cos + _turned(k) * sin


def _turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


GATES = {"silu": gate_silu, "gelu_pytorch_tanh": gate_gelu_tanh}


class _Compiled:
    """A function compiled at its first call; itself from the first failure on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._call = function, devices.compiled(function)

    def __call__(self, *given: Any) -> Any:
        try:
            return self._call(*given)
        except devices.FAILURES as error:
            if devices.is_out_of_memory(error) or self._call is self._function:
                raise
            self._call = self._function
            return self._function(*given)


def install(model: Any) -> list[str]:
    """Give the layers of transformers' `model` compiled norms, gates and rotations; returns which of them work here."""
    config = model.config.get_text_config()
    weight = next(model.parameters())
    plus_one = str(config.model_type).startswith("gemma")
    gate = GATES.get(getattr(config, "hidden_activation", None) or config.hidden_act)
    hidden, inner = int(config.hidden_size), int(config.intermediate_size)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=weight.device, dtype=model.dtype)

    size = int(getattr(config, "head_dim", None) or hidden // config.num_attention_heads)
    heads = [random(1, 2, TRIED_TOKENS, size) for _ in "qk"]
    angles = [random(1, TRIED_TOKENS, size) for _ in ("cos", "sin")]
    normed = _tried(norm_plus_one if plus_one else norm, random(1, TRIED_TOKENS, hidden), random(hidden), 1e-6)
    gated = _tried(gate, random(1, TRIED_TOKENS, inner), random(1, TRIED_TOKENS, inner)) if gate else None
    rotated = _tried(rotate, *heads, *angles)
    done = []
    if normed is not None and _each(model, lambda module: _replace_norm(module, normed)):
        done.append("norm")
    if gated is not None and _each(model, lambda module: _replace_gate(module, gated)):
        done.append("gate")
    if rotated is not None and _each(model, lambda module: _replace_rotation(module, rotated)):
        done.append("rotate")
    return done


def _each(model: nn.Module, replace: Callable[[Any], bool]) -> int:
    return sum(replace(module) for module in model.modules())


def _replace_norm(module: Any, normed: _Compiled) -> bool:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or eps is None or getattr(module, "weight", None) is None:
        return False
    module.forward = lambda x: normed(x, module.weight, float(eps))
    return True


def _replace_gate(module: Any, gated: _Compiled) -> bool:
    if not all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return False
    module.forward = lambda x: module.down_proj(gated(module.gate_proj(x), module.up_proj(x)))
    return True


def _replace_rotation(module: Any, rotated: _Compiled) -> bool:
    """A copy of the layer's forward that finds our function under the name of transformers' own; theirs stays as it is."""
    own = type(module).forward
    if not isinstance(own, FunctionType) or ROTATE not in own.__code__.co_names:
        return False
    names = {**own.__globals__, ROTATE: rotated}
    copy = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    copy.__kwdefaults__ = own.__kwdefaults__
    module.forward = MethodType(copy, module)
    return True


def _tried(function: Callable[..., Any], *given: Any) -> _Compiled | None:
    """`function` compiled, where that works and gives the same results and gradients for `given`."""
    wanted = _computed(function, given)
    try:
        made = _Compiled(function)
        got = _computed(made._call, given)
    except devices.FAILURES:
        return None
    most = TOLERANCE[wanted[0].dtype]
    same = all(
        bool((one - other).float().norm() <= most * other.float().norm() + most)
        for one, other in zip(got, wanted, strict=True)
    )
    return made if same else None


def _computed(function: Callable[..., Any], given: Sequence[Any]) -> list[Tensor]:
    """Results of `function` and the gradients of its inputs."""
    with torch.enable_grad():
        inputs = [each.clone().requires_grad_(True) if isinstance(each, Tensor) else each for each in given]
        out = function(*inputs)
        outs = list(out) if isinstance(out, tuple) else [out]
        torch.autograd.backward(outs, [torch.ones_like(each) for each in outs])
    return [each.detach() for each in outs] + [
        each.grad for each in inputs if isinstance(each, Tensor) and each.grad is not None
    ]
