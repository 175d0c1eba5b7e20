"""Getting ready: tokens, model, layout, optimizer. The loop begins where this ends."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from afina.core import plan
from afina.core.compute import thread_count
from afina.core.errors import AfinaError, Problem
from afina.core.events import Event, Phase, Preflight, Warn
from afina.core.messages import N_, say
from afina.core.spec import TrainSpec
from afina.data.template import ChatTokenizer
from afina.engine import device as devices
from afina.engine import memory, native, optim, prefixes, quantized, samples, tokens
from afina.engine.batches import Item, Order
from afina.engine.before import Before, state_of
from afina.engine.evaluate import bounded
from afina.engine.folders import weight_files
from afina.engine.job import Job
from afina.engine.loading import Loaded, load
from afina.engine.model import Network
from afina.engine.tokens import Items, Tokens


@dataclass
class Ready:
    """A job with everything the loop needs. preflight: what is known before anything was computed, memory and time guessed;
    share_prefixes: what examples have in common is computed once, which saves the share `saving` of the tokens."""

    job: Job
    network: Network
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
    def device(self) -> torch.device:
        """Where the model is."""
        return self.network.device

    @property
    def learning_rate(self) -> float:
        """The full rate, which the schedule scales."""
        return self.job.spec.full_learning_rate


@dataclass(frozen=True)
class _Data:
    """What is learned from and tested with, and in which steps."""

    chat: ChatTokenizer
    tokens: Tokens
    validation: list[Item]
    order: Order
    steps: plan.Steps

    @property
    def train(self) -> Items:
        return self.tokens.train


def prepare(job: Job) -> Generator[Event, None, Ready]:
    """Yield events on the way, return what the loop needs. Raises AfinaError."""
    spec = job.spec
    yield Phase("reading_data")
    _touch_memory(job)
    data = yield from _read(job)
    yield Phase("loading_model")
    loaded = yield from load(job)
    network, trained = loaded.network, loaded.trained
    layout = _lay_out(job, loaded, data)
    if layout.checkpointing:
        network.checkpoint_activations()
    saving = _saving(spec, data, layout)
    share = yield from _share_prefixes(spec, network, saving)
    total, eval_every = data.steps.total, plan.every(spec.eval_every, data.steps.total)
    asked_of = data.tokens.held or job.all_sources[0].examples
    return Ready(
        job=job,
        network=network,
        wrapped=loaded.wrapped,
        chat=data.chat,
        train=data.train,
        validation=data.validation,
        order=data.order,
        total_steps=total,
        eval_every=eval_every,
        save_every=plan.every(spec.save_every, total) if not data.validation or spec.save_every else eval_every,
        layout=layout,
        share_prefixes=share,
        saving=saving,
        preflight=_preflight(spec, loaded, data, layout),
        trained=trained,
        optimizer=optim.build(spec.optimizer, trained, spec.full_learning_rate, spec.weight_decay),
        prompts=samples.choose(spec.sample_prompts, asked_of, data.chat, spec.system_prompt),
        before=Before(job.cache and job.cache / "before", _way(job, network, share)),
    )


def _touch_memory(job: Job) -> None:
    """Have the memory mapped meanwhile, where the allocator keeps it."""
    if job.spec.device in ("auto", "cpu") and os.environ.get("MALLOC_MMAP_MAX_") == "0":
        size = sum(path.stat().st_size for path in weight_files(job.model_folder))
        memory.touch(size, devices.free_memory(torch.device("cpu")), thread_count())


def _read(job: Job) -> Generator[Event, None, _Data]:
    """The tokens of all examples, and how they make steps. Raises AfinaError `nothing_to_learn`."""
    spec = job.spec
    chat = ChatTokenizer.load(job.model_folder, spec.chat_template, now=job.created)
    found = tokens.read(job.all_sources, chat, spec, job.cache and job.cache / "tokens")
    if not found.train:
        raise AfinaError(_nothing_to_learn(), "wrong_input")
    order = Order(found.parts, spec.examples_per_step, spec.seed)
    steps = plan.steps(order.per_epoch, spec.examples_per_step, spec.epochs, spec.max_steps)
    limit = max(64, steps.total * spec.examples_per_step // 20)
    yield from found.warnings(spec.max_length, limit)
    yield from _warmup_warning(spec, steps.total)
    return _Data(chat, found, bounded(found.validation, limit), order, steps)


def _warmup_warning(spec: TrainSpec, total: int) -> Iterator[Warn]:
    if spec.warmup_steps >= total and spec.schedule != "constant":
        text = N_(
            "The warmup ({warmup} steps) is as long as the run ({total} steps): the learning rate never reaches its full value."
        )
        yield Warn("warmup_too_long", say(text, warmup=spec.warmup_steps, total=total))


def _lay_out(job: Job, loaded: Loaded, data: _Data) -> memory.Layout:
    """How many tokens are computed at once, and what that takes."""
    spec, network = job.spec, loaded.network
    lengths = data.train.lengths[data.order.epoch(0)]
    free = devices.free_memory(network.device)
    return memory.lay_out(
        network.config,
        weights=sum(weight.nbytes for weight in network.model.parameters()),
        trainable=loaded.trained.count(),
        width=2 if network.dtype == torch.bfloat16 else 4,
        longest=int(data.train.lengths.max()),
        step=int(np.add.reduceat(lengths, range(0, len(lengths), spec.examples_per_step)).max()),
        free=free if job.memory_limit is None else min(free, job.memory_limit),
        device=network.device.type,
        switch=spec.activation_checkpointing,
        path=network.path,
    )


def _saving(spec: TrainSpec, data: _Data, layout: memory.Layout) -> float:
    """The share of the first epoch's tokens that shared prefixes save; 0 where they are not wanted."""
    if spec.share_prefixes == "off":
        return 0.0
    chosen = prefixes.evenly(data.order.steps_per_epoch, spec.examples_per_step)
    steps = ([data.train[index] for index in data.order.step(number)] for number in chosen)
    return prefixes.saving(steps, layout.tokens_per_row)


def _share_prefixes(spec: TrainSpec, network: Network, saving: float) -> Generator[Event, None, bool]:
    """Whether what examples have in common is computed once."""
    share = network.path == "fast" and (spec.share_prefixes == "on" or saving > prefixes.WORTHWHILE)
    if spec.share_prefixes == "on" and not share and saving > prefixes.WORTHWHILE:
        text = N_(
            "{share} % of the tokens stand in beginnings that examples share, but this model is computed in a way that cannot use it."
        )
        yield Warn("prefixes_not_shared", say(text, share=round(100 * saving)))
    return share


def _preflight(spec: TrainSpec, loaded: Loaded, data: _Data, layout: memory.Layout) -> Preflight:
    """What is about to happen, as far as it is known before anything was computed."""
    network, train, order = loaded.network, data.train, data.order
    parameters = sum(quantized.count(weight) for weight in network.model.parameters())
    if loaded.wrapped is not None:
        parameters -= loaded.trained.count()
    # floating-point operations a parameter and token: forward and backward, and in full fine-tuning the weights' gradients
    flops = (4 if spec.method == "lora" else 6) * parameters * int(train.lengths[order.epoch(0)].sum())
    return Preflight(
        rows=order.per_epoch,
        validation_rows=len(data.validation),
        tokens=int(train.lengths.sum()),
        answer_tokens=int(train.learned.sum()),
        cut_tokens=data.tokens.cut,
        steps_per_epoch=data.steps.per_epoch,
        total_steps=data.steps.total,
        trainable_parameters=loaded.trained.count(),
        parameters=parameters,
        precision=str(network.dtype).removeprefix("torch."),
        device=network.device.type,
        path=network.path,
        attention=network.attention,
        memory=layout.expected,
        seconds=round(1.6 * flops / order.steps_per_epoch * data.steps.total / loaded.rate, 1),
    )


def _way(job: Job, network: Network, share: bool) -> list[Any]:
    """What the answers of the untrained model depend on, besides what it is asked."""
    spec = job.spec
    adapter = [spec.lora_rank, spec.lora_alpha, spec.lora_dropout, spec.target_modules] if spec.method == "lora" else []
    computed = [network.path, str(network.dtype), devices.name(network.device), torch.get_num_threads()]
    computed += [share, native.library() is not None]
    return [*computed, *adapter, state_of([job.model_folder, *job.adapter_folders])]


def _nothing_to_learn() -> Problem:
    return Problem(
        "nothing_to_learn",
        say(N_("There is nothing to learn: no example has an answer within the maximum length.")),
        say(N_("Raise the maximum length, or choose another dataset.")),
        field="dataset",
    )
