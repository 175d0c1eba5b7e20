"""The model of a run, ready to be trained: on its device, in its number format, the adapter on it.

Knows nothing of datasets and steps.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

from afina.core.events import Event, Warn
from afina.core.messages import N_, say
from afina.engine import checkpoint, lora, optim
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
    network, wrapped = _build(job, dtype, device)
    if network.path == "reference":
        text = N_(
            "This architecture ({kind}) is computed the slow way, an example at a time: the fast way is not known to be right for it."
        )
        yield Warn("reference_path", say(text, kind=network.config.model_type))
    named = network.model.named_parameters()
    trained = optim.Trained((name, weight) for name, weight in named if weight.requires_grad)
    return Loaded(network, wrapped, trained, rate)


def _build(job: Job, dtype: torch.dtype, device: torch.device) -> tuple[models.Network, Any]:
    """The model with what is trained in it, and PEFT's model around it."""
    spec = job.spec
    apart = spec.quantization != "none"  # earlier adapters cannot be merged into such weights: they stand beside them
    merged = () if apart else job.adapter_folders
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
    """The number format of the computation, and the FLOP/s to expect of it."""
    shapes = models.shapes(config)
    rows = max(32, min(1024, int(5e8 / sum(outputs * inputs for outputs, inputs in shapes))))
    fastest, rate = devices.fastest_dtype(device, shapes, rows)
    parameters = parameters_of(job.model_folder)
    # a resumed run goes on in the format it began with, whatever would be measured now
    given = checkpoint.newest_state(job.run_folder).get("precision", job.spec.precision)
    if given in devices.DTYPES:
        return devices.DTYPES[given], rate
    free = devices.free_memory(device)
    large = 4 * parameters > 0.7 * free and job.spec.quantization == "none"
    if fastest is torch.float32 and large and job.spec.method == "lora":
        fastest = torch.bfloat16  # slower, but it fits
    return fastest, rate
