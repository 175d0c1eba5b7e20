"""Optimizers, the learning rate's schedule, and gradients: clipped, and gathered in float32 when weights are coarser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from afina.engine import device as devices


def rate_at(step: int, total: int, warmup: int, schedule: str) -> float:
    """The share of the full learning rate that step `step` (from 0 to total - 1) takes.

    Warmup is linear and reaches 1 after `warmup` steps. Then: linear to (nearly) 0 at the end; cosine: ½(1 + cos πt)
    (Loshchilov and Hutter 2017); inverse_sqrt: √(warmup / step) (Vaswani et al. 2017, section 5.3); constant.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "inverse_sqrt":
        return math.sqrt((warmup + 1) / (step + 1))
    return 1.0


class Adafactor(torch.optim.Optimizer):
    """Adafactor (Shazeer and Stern 2018) without first moment and without parameter scaling, so that a learning rate means
    here about what it means for AdamW. The second moment of a matrix is kept as its row and column means.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; the decay of the second moment is 1 - t^-0.8, updates are clipped to an RMS of 1."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                state["step"] += 1
                keep = 1.0 - float(state["step"]) ** -0.8
                update = self._scaled(param.grad.float(), state, keep)
                update /= max(1.0, float(update.square().mean().sqrt()))
                if group["weight_decay"]:
                    param.mul_(1.0 - group["lr"] * group["weight_decay"])
                param.add_(update.to(param.dtype), alpha=-group["lr"])

    @staticmethod
    def _scaled(grad: Tensor, state: dict[str, Any], keep: float) -> Tensor:
        squared = grad.square().add_(1e-30)
        if grad.dim() < 2:
            moment = state.setdefault("square", torch.zeros_like(squared))
            moment.lerp_(squared, 1.0 - keep)
            return grad.div(moment.sqrt())
        rows = state.setdefault("rows", torch.zeros_like(squared[..., 0]))
        columns = state.setdefault("columns", torch.zeros_like(squared[..., 0, :]))
        rows.lerp_(squared.mean(dim=-1), 1.0 - keep)
        columns.lerp_(squared.mean(dim=-2), 1.0 - keep)
        by_row = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt()[..., None]
        return grad.mul(by_row).mul_(columns.rsqrt()[..., None, :])


class Trained:
    """What is trained: float32 tensors that the optimizer changes, in fixed order.

    Where the model's own weights are coarser (bfloat16), each has a float32 master here: gradients of all rows add up in
    float32 and small updates are not lost to rounding; after a step the weights are written back.
    """

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        pairs = list(named)
        self.names = [name for name, _ in pairs]
        self.weights = [weight for _, weight in pairs]
        self.masters = [w if w.dtype == torch.float32 else torch.nn.Parameter(w.detach().float()) for w in self.weights]
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.register_post_accumulate_grad_hook(_hand_over_to(master))  # type: ignore[no-untyped-call]

    def count(self) -> int:
        """How many numbers are trained."""
        return sum(master.numel() for master in self.masters)

    def gradients(self) -> list[Tensor]:
        """The gradients there are."""
        return [master.grad for master in self.masters if master.grad is not None]

    def clear(self) -> None:
        """Forget the gradients."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            weight.grad = master.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model's weights."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.copy_(master)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take values saved under the same names."""
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(tensors[name])
        self.write_back()

    def named(self) -> dict[str, Tensor]:
        """The float32 values by name."""
        return {name: master.detach() for name, master in zip(self.names, self.masters, strict=True)}


def _hand_over_to(master: torch.nn.Parameter) -> Callable[[Tensor], None]:
    def hand_over(weight: Tensor) -> None:
        if weight.grad is not None:
            grad = weight.grad.float()
            master.grad = grad if master.grad is None else master.grad.add_(grad)
            weight.grad = None

    return hand_over


def build(name: str, trained: Trained, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (β 0.9 and 0.999), Adafactor, or SGD with momentum 0.9. Vectors (norms, biases) are never decayed."""
    matrices = [master for master in trained.masters if master.dim() >= 2]
    vectors = [master for master in trained.masters if master.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        fused = all(devices.has_fused_optimizer(master.device) for master in trained.masters)
        return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    if name == "adafactor":
        return Adafactor(groups, lr=learning_rate)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9)


@torch.no_grad()
def rehearse(optimizer: torch.optim.Optimizer, trained: Trained) -> None:
    """A step with gradients of zero and no learning rate: nothing changes, but all that a step allocates has been allocated.

    Without, an optimizer makes its state in its first step, and memory that ends then leaves some weights changed and some
    not. Nothing is done where there is a state already. Raises the allocator's error, and then there is no state.
    """
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    done = False
    try:
        for master in trained.masters:
            master.grad = torch.zeros_like(master)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        for entries in optimizer.state.values():
            for tensor in entries.values():
                tensor.zero_()  # counts, and the weight decay that SGD takes for a gradient
        done = True
    finally:
        trained.clear()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if not done:
            optimizer.state.clear()


@torch.no_grad()
def clip(gradients: list[Tensor], most: float) -> float:
    """Scale all gradients down together so that their common norm is at most `most` (0: never); returns the norm before."""
    if not gradients:
        return 0.0
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    value = float(norm)
    if most > 0 and math.isfinite(value) and value > most:
        torch._foreach_mul_(gradients, most / value)
    return value
