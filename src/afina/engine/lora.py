"""LoRA's forward and backward over PEFT's own parameters, with the fewest products and passes over memory.

PEFT computes x·Wᵀ + s·(x·Aᵀ)·Bᵀ: three products forward, five backward, and copies of x and y in between. Here it is
either (Hu et al. 2021, section 4.1, for W' = W + s·B·A)

    y = x·W'ᵀ                    dx = dy·W'                   merged: W' is written once a pass
    y = x·Wᵀ, y += s·z·Bᵀ        dx = dy·W, dx += dz·A        beside: y and dx are gone over once more

with z = x·Aᵀ and dz = s·dy·B, and in both dB = s·dyᵀ·z, dA = dzᵀ·x. Merged costs memory traffic by the weight's size,
beside by the number of rows, so the smaller of the two decides. Only the forward of PEFT's layers is replaced:
parameters, saving, loading and every other variant (dropout, DoRA, several adapters, quantised bases) stay PEFT's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from afina.core.compute import collector_at_rest
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.engine import device as devices
from afina.engine.pretrained import BROKEN, broken, first_line, named
from afina.engine.products import pays_to_merge

ADAPTER = "default"
WEIGHTS = "adapter_model.safetensors"
STATE_SPACES = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"})
THEIR_OWN = ("out_proj", "conv1d")
"""Linear layers whose weights the kernels of these families read by themselves, past any adapter; PEFT refuses them by these names."""


class _LoraLinear(torch.autograd.Function):
    """y = x·(W + s·B·A)ᵀ + bias for frozen W and bias; x (…, in), W (out, in), A (r, in), B (out, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        z = rows @ a.t()
        ctx.save_for_backward(rows, z, weight, a, b)
        ctx.s, ctx.shape = s, x.shape
        if pays_to_merge(rows):
            y = F.linear(rows, torch.addmm(weight, b, a, alpha=s), bias)
        else:
            y = F.linear(rows, weight, bias).addmm_(z, b.t(), alpha=s)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        rows, z, weight, a, b = ctx.saved_tensors
        dy = grad_outputs[0].reshape(-1, weight.shape[0])
        dz = (dy @ b).mul_(ctx.s)
        dx = None
        if ctx.needs_input_grad[0]:
            merged = pays_to_merge(dy)
            dx = dy @ torch.addmm(weight, b, a, alpha=ctx.s) if merged else (dy @ weight).addmm_(dz, a)
            dx = dx.view(ctx.shape)
        return dx, None, None, dz.t() @ rows, (dy.t() @ z).mul_(ctx.s), None


def _fast_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In place of `peft.tuners.lora.Linear.forward`, for one plain adapter without dropout."""
    base = self.base_layer
    a, b, s = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight, self.scaling[ADAPTER]
    if base.weight.dtype == a.dtype == x.dtype:
        result: Tensor = _LoraLinear.apply(x, base.weight, base.bias, a, b, s)  # type: ignore[no-untyped-call]
        return result
    # a coarser base (bfloat16): its sum with small updates would lose them, so they stay apart
    added: Tensor = F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype)) * s
    return F.linear(x, base.weight, base.bias) + added


@collector_at_rest()
def attach(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
    fast: bool = True,
    earlier: Sequence[Path] = (),
) -> Any:
    """Freeze `model` and add a new adapter with PEFT; returns PEFT's model. B starts at zero, so nothing changes yet.

    targets: ["all-linear"] or names of linear layers. fast: compute plain layers in one product. earlier: adapters that
    stand beside the weights, as trained, where they cannot be merged. Raises AfinaError `unknown_target_modules`,
    `adapter_mismatch`, `broken_model`.
    """
    import peft

    wanted: str | list[str] = "all-linear" if list(targets) == ["all-linear"] else list(targets)
    config_of_model: Any = model.config
    refused = list(THEIR_OWN) if config_of_model.model_type in STATE_SPACES else []
    if not isinstance(wanted, str):
        _require_linear(model, wanted, refused)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=wanted, exclude_modules=refused or None, bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an older name
        if earlier:
            wrapped: Any = model
            for name, folder in zip(_names(earlier), earlier, strict=True):
                wrapped = beside(wrapped, folder, name)
            wrapped.add_adapter(ADAPTER, config)
            wrapped.base_model.set_adapter([*_names(earlier), ADAPTER])
            for name, weight in wrapped.named_parameters():
                weight.requires_grad_(f".{ADAPTER}." in name)
        else:
            wrapped = peft.get_peft_model(model, config, adapter_name=ADAPTER)
    if fast and dropout == 0:
        speed_up(wrapped)
    return wrapped


def _names(earlier: Sequence[Path]) -> list[str]:
    return [f"earlier_{number}" for number in range(len(earlier))]


def beside(model: nn.Module, folder: Path, name: str = ADAPTER) -> Any:
    """PEFT's model with the adapter of `folder`, frozen, called `name`; model: transformers' or PEFT's. Raises AfinaError
    `adapter_mismatch`, and `broken_model` where the file lacks tensors (PEFT would make them up)."""
    import peft

    try:
        if not (folder / WEIGHTS).is_file():
            raise ValueError(f"{WEIGHTS} is missing")
        wrapped: Any = model
        if not isinstance(model, peft.PeftModel):
            config = peft.PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
            wrapped = peft.get_peft_model(model, config, adapter_name=name)
        missing = wrapped.load_adapter(str(folder), adapter_name=name).missing_keys
    except BROKEN as error:
        if devices.is_out_of_memory(error):
            raise
        raise _mismatch(error, folder) from error
    if missing:
        raise _incomplete(folder, sorted(each.replace(f".{name}.", ".") for each in missing))
    return wrapped


def _mismatch(error: BaseException, adapter: Path) -> AfinaError:
    return AfinaError(
        Problem(
            "adapter_mismatch",
            say(N_("The LoRA adapter does not fit the model: {reason}"), reason=first_line(error)),
            say(N_("Choose the base model it was trained on.")),
            field="model",
            value=str(adapter),
        ),
        "failed",
    )


def _incomplete(adapter: Path, missing: list[str]) -> AfinaError:
    text = N_("The LoRA adapter in “{folder}” is not complete: {file} lacks tensors ({count}: {tensors}).")
    message = say(text, folder=str(adapter), file=WEIGHTS, count=len(missing), tensors=named(missing))
    remedy = say(N_("Copy the adapter again or train it again, or choose the base model it was trained on."))
    return broken(message, missing, remedy=remedy)


def speed_up(model: nn.Module) -> int:
    """Give every plain LoRA layer of `model` the fast forward; returns how many there are."""
    count = 0
    for layer in plain_layers(model):
        layer.forward = MethodType(_fast_forward, layer)
        count += 1
    return count


def plain_layers(model: nn.Module) -> list[Any]:
    """The LoRA layers the fast forward is right for."""
    return [layer for layer in model.modules() if is_plain(layer)]


def is_plain(layer: Any) -> bool:
    """Whether `layer` is PEFT's LoRA around an ordinary linear layer: the one adapter, no dropout, nothing merged."""
    from peft.tuners.lora import Linear

    return (
        type(layer) is Linear
        and isinstance(layer.base_layer, nn.Linear)
        and list(layer.lora_A) == [ADAPTER]
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and not layer.merged
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and layer.lora_A[ADAPTER].bias is None
        and layer.lora_B[ADAPTER].bias is None
    )


def _require_linear(model: nn.Module, wanted: Sequence[str], refused: Sequence[str]) -> None:
    linear = (name for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
    paths = {name for name in linear if name.rpartition(".")[2] not in refused}
    names = {name.rpartition(".")[2] for name in paths}
    unknown = [
        name
        for name in wanted
        if name not in names and not any(path.endswith(f".{name}") or path == name for path in paths)
    ]
    if unknown:
        raise AfinaError(
            Problem(
                "unknown_target_modules",
                say(N_("The model has no linear layer named {names}."), names=", ".join(unknown)),
                say(N_("Use all-linear, or some of: {known}."), known=", ".join(sorted(names))),
                field="target_modules",
                value=", ".join(wanted),
            )
        )
