"""The model of a run, ready to be trained: on its device, in its number format, the adapter on it.

Knows nothing of datasets and steps.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

from afina.core.errors import AfinaError
from afina.core.events import Event, Warn
from afina.core.messages import N_, say
from afina.engine import checkpoint, lora, memory, optim
from afina.engine import device as devices
from afina.engine import model as models
from afina.engine.folders import parameters_of
from afina.engine.job import Job


@dataclass(frozen=True)
class Loaded:
    """network: the model and how it is computed; wrapped: PEFT's model around it, None in full fine-tuning; trained: the
    weights that learn; rate: the FLOP/s to expect."""

    network: models.Network
    wrapped: Any
    trained: optim.Trained
    rate: float


def load(job: Job) -> Generator[Event, None, Loaded]:
    """Load what `job` names; yields what the person should know. Raises AfinaError."""
    devices.use_threads(job.spec.threads)
    device = devices.choose_device(job.spec.device)
    dtype, rate = _precision(job, models.text_config(job.model_folder), device)
    network, wrapped = yield from _fitting(job, dtype, device)
    if network.path == "reference":
        text = N_(
            "This architecture ({kind}) is computed the slow way, an example at a time: the fast way is not known to be right for it."
        )
        yield Warn("reference_path", say(text, kind=network.config.model_type))
    named = network.model.named_parameters()
    trained = optim.Trained((name, weight) for name, weight in named if weight.requires_grad)
    return Loaded(network, wrapped, trained, rate)


def _fitting(job: Job, dtype: torch.dtype, device: torch.device) -> Generator[Event, None, tuple[models.Network, Any]]:
    """What `_build` gives in `dtype`, or in bfloat16 where that does not fit and the settings leave the choice."""
    coarse = dtype is torch.float32 and _may_be_coarse(job)
    if not (coarse and _is_large(job, device)):
        try:
            return _build(job, dtype, device)
        except AfinaError as error:
            if not coarse or error.code != "out_of_memory":
                raise
        devices.release_memory(device)  # what was loaded so far went with the error
    yield _coarser()
    return _build(job, torch.bfloat16, device)


def _build(job: Job, dtype: torch.dtype, device: torch.device) -> tuple[models.Network, Any]:
    """The model with what is trained in it, and PEFT's model around it."""
    spec = job.spec
    apart = spec.quantization != "none"  # earlier adapters cannot be merged into such weights: they stand beside them
    merged = () if apart else job.adapter_folders
    needed = parameters_of(job.model_folder) * dtype.itemsize
    with memory.asked_for(job.model_folder.name, needed, dtype, device):
        model = models.load(job.model_folder, dtype, device, merged, spec.quantization)
        torch.manual_seed(spec.seed)
        wrapped = None
        if spec.method == "lora":
            wrapped = lora.attach(
                model,
                rank=spec.lora_rank,
                alpha=spec.lora_alpha,
                dropout=spec.lora_dropout,
                targets=spec.target_modules,
                earlier=job.adapter_folders if apart else (),
            )
            model = wrapped.get_base_model()
        else:
            model.requires_grad_(True)
        model.train()
        return models.Network(model), wrapped


def _precision(job: Job, config: Any, device: torch.device) -> tuple[torch.dtype, float]:
    """The number format asked for, else the faster one, and the FLOP/s to expect."""
    shapes = models.shapes(config)
    rows = max(32, min(1024, int(5e8 / sum(outputs * inputs for outputs, inputs in shapes))))
    fastest, rate = devices.fastest_dtype(device, shapes, rows)
    return devices.DTYPES.get(_asked(job), fastest), rate


def _asked(job: Job) -> str:
    """The precision of the settings; a resumed run goes on in the one it began with, whatever would be chosen now."""
    return str(checkpoint.newest_state(job.run_folder).get("precision", job.spec.precision))


def _may_be_coarse(job: Job) -> bool:
    """Whether bfloat16 may be taken for its size. In full fine-tuning it takes more: float32 masters stand beside the weights."""
    return _asked(job) == "auto" and job.spec.method == "lora"


def _is_large(job: Job, device: torch.device) -> bool:
    """Whether the weights in float32 would leave too little."""
    large = 4 * parameters_of(job.model_folder) > 0.7 * devices.free_memory(device)
    return large and job.spec.quantization == "none"


def _coarser() -> Warn:
    text = N_(
        "The model does not fit into memory in float32: it is computed in bfloat16, which takes half as much and rounds more."
    )
    return Warn("bfloat16_for_memory", say(text))
