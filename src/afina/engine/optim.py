"""Optimizers, the learning rate's schedule, and gradients: clipped, and gathered in float32 when weights are coarser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from afina.engine import device as devices
from afina.engine import native
from afina.engine.native import adamw


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
    float32 and small updates are not lost to rounding; after a step the weights are written back. by_kernels: whether kernels take them.
    """

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        pairs = list(named)
        self.names = [name for name, _ in pairs]
        self.weights = [weight for _, weight in pairs]
        self.masters = [w if w.dtype == torch.float32 else torch.nn.Parameter(w.detach().float()) for w in self.weights]
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.grad_dtype = master.dtype
        coarser = [weight for weight, master in self.pairs() if weight is not master]
        self.by_kernels = all(native.serves(each) for each in (*self.masters, *coarser))

    def count(self) -> int:
        """How many numbers are trained."""
        return sum(master.numel() for master in self.masters)

    def gradients(self) -> list[Tensor]:
        """The gradients there are; masters of coarser weights have theirs from here on."""
        for weight, master in self.pairs():
            if master is not weight:
                master.grad = weight.grad
        return [master.grad for master in self.masters if master.grad is not None]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each of the model's weights with its master."""
        return list(zip(self.weights, self.masters, strict=True))

    def clear(self) -> None:
        """Forget the gradients."""
        for weight, master in self.pairs():
            weight.grad = master.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model's weights."""
        for weight, master in self.pairs():
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
def norm(trained: Trained) -> float:
    """The common norm of all gradients there are."""
    gradients = trained.gradients()
    if gradients and trained.by_kernels and _whole(gradients):
        return adamw.norm(gradients)
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def clipped(length: float, most: float) -> float:
    """By how much gradients of a common norm of `length` must be multiplied for one of at most `most` (0: never)."""
    return most / length if most > 0 and math.isfinite(length) and length > most else 1.0


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer, trained: Trained, by: float = 1.0) -> None:
    """A step of the optimizer by `by` times the gradients there are, which may be changed by it; then the model's weights follow."""
    gradients = trained.gradients()
    if isinstance(optimizer, torch.optim.AdamW) and trained.by_kernels and _whole(gradients):
        _step_by_kernel(optimizer, trained, by)
        return
    if by != 1.0:
        torch._foreach_mul_(gradients, by)
    optimizer.step()
    trained.write_back()


def _step_by_kernel(optimizer: torch.optim.AdamW, trained: Trained, by: float) -> None:
    rounded = {master: None if weight is master else weight for weight, master in trained.pairs()}
    for group in optimizer.param_groups:
        (beta_1, beta_2), rate = group["betas"], group["lr"]
        masters = [master for master in group["params"] if master.grad is not None]
        if not masters:
            continue
        states = [optimizer.state[master] or _begin(optimizer, master) for master in masters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1.0)
        works = []
        for master, state, count in zip(masters, states, torch.stack(steps).tolist(), strict=True):
            rates = (1.0 - rate * group["weight_decay"], rate / (1.0 - beta_1**count), (1.0 - beta_2**count) ** -0.5)
            others = (master, state["exp_avg"], state["exp_avg_sq"], rounded[master])
            works.append(adamw.Moved.of(master.grad, others, rates))
        adamw.step(works, by, (beta_1, beta_2), group["eps"])


def _begin(optimizer: torch.optim.AdamW, master: Tensor) -> dict[str, Tensor]:
    """The state as PyTorch's own first step makes it."""
    moments = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[master] = {"step": torch.zeros((), dtype=torch.float32), **moments}
    return optimizer.state[master]  # type: ignore[no-any-return]


def _whole(gradients: list[Tensor]) -> bool:
    return all(gradient.is_contiguous() for gradient in gradients)
