"""Getting ready: device, number format, model, adapter, tokens, layout, optimizer. The loop begins where this ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch

from afina.core import plan
from afina.core.errors import AfinaError, Problem
from afina.core.events import Event, Phase, Preflight, Warn
from afina.core.messages import N_, Message, say
from afina.core.spec import LEARNING_RATES, TrainSpec
from afina.data.examples import Example
from afina.data.template import ChatTokenizer
from afina.engine import checkpoint, lora, memory, optim, prefixes, quantized, samples
from afina.engine import device as devices
from afina.engine import model as models
from afina.engine.batches import Item, Order, Part
from afina.engine.evaluate import bounded
from afina.engine.folders import parameters_of

Keep = Literal["last", "best"]


def _never() -> Keep | None:
    return None


@dataclass(frozen=True)
class Job:
    """What to train, from what, and where to.

    adapter_folders: LoRA results to merge into the model first, in order; train: examples, the parts of a mix after one
    another; parts: (examples, weight) of each, None for one part; stop: asked after every step; created: the date that
    chat templates may print; memory_limit: bytes to plan with, None for what is free; notes: kept beside the result.
    """

    spec: TrainSpec
    model_folder: Path
    run_folder: Path
    train: Sequence[Example]
    validation: Sequence[Example] = ()
    adapter_folders: Sequence[Path] = ()
    parts: Sequence[tuple[int, float]] | None = None
    stop: Callable[[], Keep | None] = _never
    created: datetime | None = None
    memory_limit: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Ready:
    """A job with everything the loop needs. preflight: what is known before anything was computed, memory and time guessed;
    share_prefixes: what examples have in common is computed once, which saves the share `saving` of the tokens."""

    job: Job
    device: torch.device
    network: models.Network
    wrapped: Any
    chat: ChatTokenizer
    train: list[Item]
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

    @property
    def learning_rate(self) -> float:
        """The full rate, which the schedule scales."""
        rate = self.job.spec.learning_rate
        return LEARNING_RATES[self.job.spec.method] if rate is None else rate


def prepare(job: Job) -> Iterator[Event | Ready]:
    """Yield events on the way and, last of all, the `Ready`. Raises AfinaError."""
    spec = job.spec
    yield Phase("reading_data")
    chat = ChatTokenizer.load(job.model_folder, spec.chat_template, now=job.created)
    tokens = _Tokens(job, chat)
    train, parts = tokens.of_parts()
    validation = tokens.of(job.validation)
    if not train:
        raise AfinaError(_nothing_to_learn(), "wrong_input")
    order = Order(parts, spec.examples_per_step, spec.seed)
    steps = plan.steps(order.per_epoch, spec.examples_per_step, spec.epochs, spec.max_steps)
    limit = max(64, steps.total * spec.examples_per_step // 20)
    yield from tokens.warnings(len(validation), limit)
    validation = bounded(validation, limit)
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
    layout = _layout(job, config, model, trained, train, dtype, device)
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
        * sum(len(train[i]) for i in order.epoch(0))
        / order.steps_per_epoch
    )
    eval_every = plan.every(spec.eval_every, steps.total)
    preflight = Preflight(
        rows=order.per_epoch,
        validation_rows=len(validation),
        tokens=sum(len(item) for item in train),
        answer_tokens=sum(item.learned for item in train),
        cut_tokens=tokens.cut,
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
        prompts=samples.choose(spec.sample_prompts, [*job.validation] or job.train, chat, spec.system_prompt),
    )


class _Tokens:
    """Examples → items, counting what is cut and what has nothing to learn."""

    def __init__(self, job: Job, chat: ChatTokenizer) -> None:
        self._job = job
        self._chat = chat
        self.cut = self.cut_answer = self.cut_rows = self.empty = self.learned = 0

    def of(self, examples: Sequence[Example], count: bool = False) -> list[Item]:
        """The examples that have something to learn; documents as several items."""
        spec, items = self._job.spec, []
        for example in examples:
            for encoded in self._chat.encode_all(
                example, max_length=spec.max_length, train_on=spec.train_on, system_prompt=spec.system_prompt
            ):
                if count:
                    self.cut += encoded.cut
                    self.cut_answer += encoded.cut_answer
                    self.cut_rows += encoded.cut > 0
                    self.empty += not encoded.learned
                    self.learned += encoded.learned
                if encoded.learned:
                    items.append(Item.of(encoded))
        return items

    def of_parts(self) -> tuple[list[Item], list[Part]]:
        """The training examples, part after part, and how many items each part has."""
        items: list[Item] = []
        parts: list[Part] = []
        first = 0
        for count, weight in self._job.parts or [(len(self._job.train), 1.0)]:
            some = self.of(self._job.train[first : first + count], count=True)
            items += some
            parts.append(Part(len(some), weight))
            first += count
        return items, [part for part in parts if part.count]

    def warnings(self, validation: int, limit: int) -> Iterator[Warn]:
        """What a person should know about the examples."""
        if self.cut_rows:
            share = round(100 * self.cut_answer / max(1, self.cut_answer + self.learned), 1)
            text = N_(
                "{rows} examples are longer than {limit} tokens; the end of their answers is cut ({share} % of all answer tokens)."
            )
            yield Warn("too_long", say(text, rows=self.cut_rows, limit=self._job.spec.max_length, share=share))
        if self.empty:
            text = N_("{rows} examples are left out: nothing of their answers is left to learn from.")
            yield Warn("nothing_left", say(text, rows=self.empty))
        if validation > limit:
            text = N_("Validation uses {used} of {all} examples, evenly spread, to save time.")
            yield Warn("validation_sampled", say(text, used=limit, all=validation))


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
    model: Any,
    trained: optim.Trained,
    train: list[Item],
    dtype: torch.dtype,
    device: torch.device,
) -> memory.Layout:
    spec = job.spec
    free = devices.free_memory(device)
    lengths = sorted(len(item) for item in train)
    mean = sum(lengths) / len(lengths)
    return memory.lay_out(
        config,
        weights=sum(weight.nbytes for weight in model.parameters()),
        trainable=trained.count(),
        width=2 if dtype == torch.bfloat16 else 4,
        longest=lengths[-1],
        step=math.ceil(mean * spec.examples_per_step),
        free=free if job.memory_limit is None else min(free, job.memory_limit),
        device=device.type,
        switch=spec.activation_checkpointing,
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
