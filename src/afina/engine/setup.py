"""Getting ready: device, number format, model, adapter, tokens, layout, optimizer. The loop begins where this ends."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch

from afina.core import plan
from afina.core.compute import thread_count
from afina.core.errors import AfinaError, Problem
from afina.core.events import Event, Phase, Preflight, Warn
from afina.core.messages import N_, Message, say
from afina.core.spec import LEARNING_RATES, TrainSpec
from afina.data.examples import Example
from afina.data.template import ChatTokenizer
from afina.engine import checkpoint, lora, memory, native, optim, prefixes, quantized, samples, tokens
from afina.engine import device as devices
from afina.engine import model as models
from afina.engine.batches import Item, Order
from afina.engine.before import Before, state_of
from afina.engine.evaluate import bounded
from afina.engine.folders import parameters_of, weight_files
from afina.engine.tokens import Items, Source, everything

Keep = Literal["last", "best"]


def _never() -> Keep | None:
    return None


@dataclass(frozen=True)
class Job:
    """What to train, from what, and where to.

    adapter_folders: LoRA results to merge into the model first, in order; train, validation: examples, or in their place
    sources: datasets that are read as they are needed; stop: asked after every step; created: the date that chat templates
    may print; memory_limit: bytes to plan with, None for what is free; cache: a folder for what need not be computed twice,
    None for nothing; notes: kept beside the result.
    """

    spec: TrainSpec
    model_folder: Path
    run_folder: Path
    train: Sequence[Example] = ()
    validation: Sequence[Example] = ()
    adapter_folders: Sequence[Path] = ()
    sources: Sequence[Source] = ()
    stop: Callable[[], Keep | None] = _never
    created: datetime | None = None
    memory_limit: int | None = None
    cache: Path | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def all_sources(self) -> Sequence[Source]:
        """The datasets, however they were given."""
        return self.sources or [Source(self.train), Source(self.validation, held=everything)]


@dataclass
class Ready:
    """A job with everything the loop needs. preflight: what is known before anything was computed, memory and time guessed;
    share_prefixes: what examples have in common is computed once, which saves the share `saving` of the tokens."""

    job: Job
    device: torch.device
    network: models.Network
    wrapped: Any
    chat: ChatTokenizer
    train: Items
    validation: list[Item]
    order: Order
    total_steps: int
    eval_every: int
    save_every: int
    layout: memory.Layout
    share_prefixes: bool
    saving: float
    preflight: Preflight
    trained: optim.Trained
    optimizer: torch.optim.Optimizer
    prompts: list[samples.Prompt]
    before: Before

    @property
    def learning_rate(self) -> float:
        """The full rate, which the schedule scales."""
        rate = self.job.spec.learning_rate
        return LEARNING_RATES[self.job.spec.method] if rate is None else rate


def prepare(job: Job) -> Iterator[Event | Ready]:
    """Yield events on the way and, last of all, the `Ready`. Raises AfinaError."""
    spec = job.spec
    yield Phase("reading_data")
    if spec.device in ("auto", "cpu") and os.environ.get("MALLOC_MMAP_MAX_") == "0":
        size = sum(path.stat().st_size for path in weight_files(job.model_folder))
        memory.touch(size, devices.free_memory(torch.device("cpu")), thread_count())
    chat = ChatTokenizer.load(job.model_folder, spec.chat_template, now=job.created)
    found = tokens.read(job.all_sources, chat, spec, job.cache and job.cache / "tokens")
    train = found.train
    if not train:
        raise AfinaError(_nothing_to_learn(), "wrong_input")
    order = Order(found.parts, spec.examples_per_step, spec.seed)
    steps = plan.steps(order.per_epoch, spec.examples_per_step, spec.epochs, spec.max_steps)
    limit = max(64, steps.total * spec.examples_per_step // 20)
    yield from found.warnings(spec.max_length, limit)
    validation = bounded(found.validation, limit)
    if spec.warmup_steps >= steps.total and spec.schedule != "constant":
        text = N_(
            "The warmup ({warmup} steps) is as long as the run ({total} steps): the learning rate never reaches its full value."
        )
        yield Warn("warmup_too_long", say(text, warmup=spec.warmup_steps, total=steps.total))

    yield Phase("loading_model")
    devices.use_threads(spec.threads)
    device = devices.choose_device(spec.device)
    config = models.text_config(job.model_folder)
    dtype, rate = _precision(job, config, device)
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
    network = models.Network(model)
    if network.path == "reference":
        text = N_(
            "This architecture ({kind}) is computed the slow way, an example at a time: the fast way is not known to be right for it."
        )
        yield Warn("reference_path", say(text, kind=config.model_type))
    trained = optim.Trained((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    layout = _layout(job, config, network, trained, train, dtype)
    if layout.checkpointing:
        network.checkpoint_activations()
    saving = _saving(spec, order, train, layout)
    share = network.path == "fast" and (spec.share_prefixes == "on" or saving > prefixes.WORTHWHILE)
    if spec.share_prefixes == "on" and not share and saving > prefixes.WORTHWHILE:
        text = N_(
            "{share} % of the tokens stand in beginnings that examples share, but this model is computed in a way that cannot use it."
        )
        yield Warn("prefixes_not_shared", say(text, share=round(100 * saving)))
    optimizer = optim.build(
        spec.optimizer, trained, spec.learning_rate or LEARNING_RATES[spec.method], spec.weight_decay
    )

    parameters = sum(quantized.count(weight) for weight in model.parameters()) - (trained.count() if wrapped else 0)
    work = (
        (4 if spec.method == "lora" else 6)
        * parameters
        * int(train.lengths[order.epoch(0)].sum())
        / order.steps_per_epoch
    )
    eval_every = plan.every(spec.eval_every, steps.total)
    preflight = Preflight(
        rows=order.per_epoch,
        validation_rows=len(validation),
        tokens=int(train.lengths.sum()),
        answer_tokens=int(train.learned.sum()),
        cut_tokens=found.cut,
        steps_per_epoch=steps.per_epoch,
        total_steps=steps.total,
        trainable_parameters=trained.count(),
        parameters=parameters,
        precision=str(dtype).removeprefix("torch."),
        device=device.type,
        path=network.path,
        attention=network.attention,
        memory=layout.expected,
        seconds=round(1.6 * work * steps.total / rate, 1),
    )
    yield Ready(
        job=job,
        device=device,
        network=network,
        wrapped=wrapped,
        chat=chat,
        train=train,
        validation=validation,
        order=order,
        total_steps=steps.total,
        eval_every=eval_every,
        save_every=plan.every(spec.save_every, steps.total) if not validation or spec.save_every else eval_every,
        layout=layout,
        share_prefixes=share,
        saving=saving,
        preflight=preflight,
        trained=trained,
        optimizer=optimizer,
        prompts=samples.choose(
            spec.sample_prompts, found.held or job.all_sources[0].examples, chat, spec.system_prompt
        ),
        before=Before(job.cache and job.cache / "before", _way(job, network, share)),
    )


def _way(job: Job, network: models.Network, share: bool) -> list[Any]:
    """What the answers of the untrained model depend on, besides what it is asked."""
    spec = job.spec
    adapter = [spec.lora_rank, spec.lora_alpha, spec.lora_dropout, spec.target_modules] if spec.method == "lora" else []
    computed = [network.path, str(network.dtype), devices.name(network.device), torch.get_num_threads()]
    computed += [share, native.library() is not None]
    return [*computed, *adapter, state_of([job.model_folder, *job.adapter_folders])]


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


def _layout(
    job: Job,
    config: Any,
    network: models.Network,
    trained: optim.Trained,
    train: Items,
    dtype: torch.dtype,
) -> memory.Layout:
    spec = job.spec
    free = devices.free_memory(network.device)
    return memory.lay_out(
        config,
        weights=sum(weight.nbytes for weight in network.model.parameters()),
        trainable=trained.count(),
        width=2 if dtype == torch.bfloat16 else 4,
        longest=int(train.lengths.max()),
        step=math.ceil(int(train.lengths.sum()) / len(train) * spec.examples_per_step),
        free=free if job.memory_limit is None else min(free, job.memory_limit),
        device=network.device.type,
        switch=spec.activation_checkpointing,
        path=network.path,
    )


def _saving(spec: TrainSpec, order: Order, train: Sequence[Item], layout: memory.Layout) -> float:
    """The share of the first epoch's tokens that shared prefixes save; 0 where they are not wanted."""
    if spec.share_prefixes == "off":
        return 0.0
    chosen = prefixes.evenly(order.steps_per_epoch, spec.examples_per_step)
    steps = ([train[index] for index in order.step(number)] for number in chosen)
    return prefixes.saving(steps, layout.tokens_per_row)


def _nothing_to_learn() -> Problem:
    message: Message = say(N_("There is nothing to learn: no example has an answer within the maximum length."))
    return Problem(
        "nothing_to_learn", message, say(N_("Raise the maximum length, or choose another dataset.")), field="dataset"
    )
