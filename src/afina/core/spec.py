"""Every setting of a training run, declared once.

Form field, CLI flag, JSON schema, validation, database record and reference page derive from `TrainSpec`. Knows nothing
of where a run comes from or what trains it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from afina.core.messages import N_

Method = Literal["lora", "full"]
Schedule = Literal["linear", "cosine", "constant", "inverse_sqrt"]
Optimizer = Literal["adamw", "adafactor", "sgd"]
Precision = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda", "xpu", "mps"]
Switch = Literal["auto", "on", "off"]
Quantization = Literal["none", "8bit", "4bit"]
TrainOn = Literal["answers", "all"]
ChatTemplate = Literal["auto", "chatml", "plain"]

LEARNING_RATES: dict[str, float] = {"lora": 2e-4, "full": 2e-5}


class DatasetPart(BaseModel):
    """One dataset of a mix. weight 1 uses each row once an epoch, 0.2 a seeded fifth of them, 2 each row twice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=1000)
    weight: float = Field(default=1.0, gt=0, le=100)


def _parts(value: Any) -> Any:
    """Accept "file.txt", "file.txt=0.2", {"name", "weight"} or a list of those."""
    items = value if isinstance(value, list | tuple) else [value]
    return [_part(item) for item in items]


def _part(item: Any) -> Any:
    if not isinstance(item, str):
        return item
    name, equals, weight = item.rpartition("=")
    return {"name": name, "weight": weight} if equals and _is_number(weight) else {"name": item}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _words(value: Any) -> Any:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


@dataclass(frozen=True)
class About:
    """What a person reads about a setting. `group` names the fieldset; basic settings are always visible; `usual` is the
    range that suits most runs (the limits are wider)."""

    label: str
    help: str
    group: Literal["what", "basic", "length", "optimizer", "lora", "watching", "machine", "text", "notes"]
    basic: bool = False
    unit: str | None = None
    usual: tuple[float, float] | None = None


class TrainSpec(BaseModel):
    """A training run as a person asks for it. A step is `batch_size × gradient_accumulation_steps` examples.

    `None` means "decided for you"; `resolved()` fills in what does not need the model or the data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    model: Annotated[
        str,
        About(
            N_("Base model"),
            N_("The model to start from: a base model, or the result of an earlier run."),
            "what",
            True,
        ),
    ] = Field(min_length=1, max_length=1000)
    dataset: Annotated[
        list[DatasetPart],
        BeforeValidator(_parts),
        About(
            N_("Dataset"),
            N_(
                "The examples to learn from. Several can be mixed; a weight of 0.2 uses a fifth of a dataset's rows in each epoch."
            ),
            "what",
            True,
        ),
    ] = Field(min_length=1, max_length=100)
    method: Annotated[
        Method,
        About(
            N_("Method"),
            N_("LoRA trains a small addition and keeps the model; full fine-tuning changes every weight."),
            "what",
            True,
        ),
    ] = "lora"
    epochs: Annotated[
        float,
        About(N_("Epochs"), N_("How many times the model sees every example."), "basic", True, usual=(1, 5)),
    ] = Field(default=3.0, gt=0, le=1000)
    learning_rate: Annotated[
        float | None,
        About(
            N_("Learning rate"),
            N_(
                "How big each correction is. Too big and the model forgets how to speak; too small and it learns nothing. Empty: 0.0002 for LoRA, 0.00002 for full fine-tuning."
            ),
            "basic",
            True,
            usual=(1e-05, 0.001),
        ),
    ] = Field(default=None, gt=0, le=1)
    batch_size: Annotated[
        int,
        About(
            N_("Batch size"),
            N_("How many examples the model looks at before it counts its mistakes."),
            "basic",
            True,
            N_("examples"),
            usual=(1, 16),
        ),
    ] = Field(default=4, ge=1, le=4096)
    gradient_accumulation_steps: Annotated[
        int,
        About(
            N_("Gradient accumulation steps"),
            N_(
                "How many batches are gathered before one correction. The correction then rests on batch size × this number of examples."
            ),
            "basic",
            True,
            N_("batches"),
            usual=(1, 16),
        ),
    ] = Field(default=1, ge=1, le=4096)
    warmup_steps: Annotated[
        int,
        About(
            N_("Warmup steps"),
            N_("The first corrections are made small and grow over this many steps."),
            "basic",
            True,
            N_("steps"),
            usual=(0, 100),
        ),
    ] = Field(default=5, ge=0, le=1_000_000)

    max_length: Annotated[
        int,
        About(
            N_("Maximum length"),
            N_("Longer examples are cut here. Memory and time grow with it."),
            "length",
            unit=N_("tokens"),
            usual=(256, 2048),
        ),
    ] = Field(default=1024, ge=16, le=1_048_576)
    max_steps: Annotated[
        int | None,
        About(
            N_("Maximum steps"),
            N_("Stop after this many steps, whatever the epochs say. Empty: no limit."),
            "length",
            unit=N_("steps"),
        ),
    ] = Field(default=None, ge=1, le=100_000_000)
    validation_share: Annotated[
        float,
        About(
            N_("Validation share"),
            N_("This part of the rows is not learned from but used to test what was learned. 0: no validation."),
            "length",
        ),
    ] = Field(default=0.1, ge=0, le=0.5)
    validation_rows: Annotated[
        int | None,
        About(
            N_("Validation rows"),
            N_("So many rows to test with, in place of a share. Empty: by the share."),
            "length",
            unit=N_("rows"),
        ),
    ] = Field(default=None, ge=1, le=1_000_000)
    validation_dataset: Annotated[
        str | None,
        About(
            N_("Validation dataset"),
            N_("A dataset of its own to test with, in place of a share of the rows."),
            "length",
        ),
    ] = Field(default=None, min_length=1, max_length=1000)
    train_on: Annotated[
        TrainOn,
        About(N_("Learn from"), N_("Answers only (recommended), or the questions too."), "length"),
    ] = "answers"

    schedule: Annotated[
        Schedule,
        About(N_("Learning rate schedule"), N_("How the learning rate falls towards the end."), "optimizer"),
    ] = "linear"
    optimizer: Annotated[
        Optimizer,
        About(
            N_("Optimizer"),
            N_("The rule that turns mistakes into corrections. Adafactor needs less memory in full fine-tuning."),
            "optimizer",
        ),
    ] = "adamw"
    weight_decay: Annotated[
        float,
        About(N_("Weight decay"), N_("Pulls weights gently towards zero."), "optimizer"),
    ] = Field(default=0.0, ge=0, le=1)
    max_grad_norm: Annotated[
        float,
        About(N_("Maximum gradient norm"), N_("Corrections larger than this are scaled down. 0: never."), "optimizer"),
    ] = Field(default=1.0, ge=0, le=1000)

    lora_rank: Annotated[
        int,
        About(N_("LoRA rank"), N_("How much the addition can hold."), "lora", usual=(8, 64)),
    ] = Field(default=16, ge=1, le=1024)
    lora_alpha: Annotated[
        float,
        About(
            N_("LoRA alpha"),
            N_("How strongly the addition counts; usually once or twice the rank."),
            "lora",
            usual=(16, 128),
        ),
    ] = Field(default=32.0, gt=0, le=4096)
    lora_dropout: Annotated[
        float,
        About(
            N_("LoRA dropout"), N_("Switches parts of the addition off at random while learning. 0 is fastest."), "lora"
        ),
    ] = Field(default=0.0, ge=0, lt=1)
    quantization: Annotated[
        Quantization,
        About(
            N_("Quantisation of the base model"),
            N_(
                "Holds the base model in 8 or 4 bits a weight while the addition is trained (4 bits: QLoRA). Much less memory, but slower and less exact. Needs the package bitsandbytes."
            ),
            "lora",
        ),
    ] = "none"
    target_modules: Annotated[
        list[str],
        BeforeValidator(_words),
        About(
            N_("Target modules"),
            N_("Which layers get the addition: all-linear, or names such as q_proj, v_proj."),
            "lora",
        ),
    ] = Field(default=["all-linear"], min_length=1, max_length=200)

    eval_every: Annotated[
        int | None,
        About(
            N_("Validate every"),
            N_("How often validation loss is measured. Empty: about ten times in a run."),
            "watching",
            unit=N_("steps"),
        ),
    ] = Field(default=None, ge=1, le=100_000_000)
    save_every: Annotated[
        int | None,
        About(
            N_("Save every"),
            N_("How often a checkpoint is written. Empty: together with validation."),
            "watching",
            unit=N_("steps"),
        ),
    ] = Field(default=None, ge=1, le=100_000_000)
    keep: Annotated[
        int,
        About(
            N_("Checkpoints to keep"), N_("The newest ones that stay on disk; the best one always stays."), "watching"
        ),
    ] = Field(default=2, ge=1, le=1000)
    early_stopping_patience: Annotated[
        int | None,
        About(
            N_("Early stopping patience"),
            N_("Stop when validation loss has not improved this many times in a row. Empty: never."),
            "watching",
        ),
    ] = Field(default=None, ge=1, le=1000)
    sample_prompts: Annotated[
        list[str],
        About(
            N_("Sample prompts"),
            N_("Questions the model answers before, during and after training. Empty: three from the dataset."),
            "watching",
        ),
    ] = Field(default=[], max_length=10)

    precision: Annotated[
        Precision,
        About(
            N_("Precision"),
            N_("The number format of the computation. Automatic takes the faster one on this machine."),
            "machine",
        ),
    ] = "auto"
    device: Annotated[
        Device,
        About(N_("Device"), N_("Where to compute. Automatic takes a graphics card when there is one."), "machine"),
    ] = "auto"
    activation_checkpointing: Annotated[
        Switch,
        About(N_("Activation checkpointing"), N_("Needs less memory and more time."), "machine"),
    ] = "auto"
    share_prefixes: Annotated[
        Switch,
        About(
            N_("Shared prefixes"),
            N_(
                "Computes the beginning that examples have in common, such as a system prompt, only once; the result is the same. Automatic: where that saves more than 10 % of the tokens."
            ),
            "machine",
        ),
    ] = "auto"
    threads: Annotated[
        int | None,
        About(N_("Threads"), N_("Processor cores to use. Empty: all of them."), "machine"),
    ] = Field(default=None, ge=1, le=1024)
    seed: Annotated[
        int,
        About(N_("Seed"), N_("The same seed, data and settings give the same result."), "machine"),
    ] = Field(default=42, ge=0, le=2**32 - 1)

    chat_template: Annotated[
        ChatTemplate,
        About(
            N_("Chat template"),
            N_(
                "How a conversation is written for the model. Automatic uses the model's own; for a model that has none, choose one."
            ),
            "text",
        ),
    ] = "auto"
    system_prompt: Annotated[
        str | None,
        About(N_("System prompt"), N_("Put in front of conversations that have none of their own."), "text"),
    ] = Field(default=None, max_length=100_000)

    name: Annotated[
        str | None,
        About(
            N_("Name"),
            N_("What you will call the result. Empty: made from the model, the dataset and the time."),
            "notes",
        ),
    ] = Field(default=None, min_length=1, max_length=100)
    notes: Annotated[
        str,
        About(N_("Notes"), N_("Anything you want to remember about this run."), "notes"),
    ] = Field(default="", max_length=100_000)
    tags: Annotated[
        list[str],
        BeforeValidator(_words),
        About(N_("Tags"), N_("Words to find this run by."), "notes"),
    ] = Field(default=[], max_length=50)

    @field_validator(
        "validation_dataset",
        "validation_rows",
        "name",
        "system_prompt",
        "learning_rate",
        "max_steps",
        "eval_every",
        "save_every",
        "early_stopping_patience",
        "threads",
        mode="before",
    )
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if isinstance(value, str) and not value.strip() else value

    @model_validator(mode="after")
    def _names_once(self) -> TrainSpec:
        names = [part.name for part in self.dataset]
        if len(set(names)) != len(names):
            raise ValueError("dataset_twice")
        return self

    @model_validator(mode="after")
    def _only_lora_beside_quantized_weights(self) -> TrainSpec:
        if self.quantization != "none" and self.method != "lora":
            raise ValueError("quantization_needs_lora")
        return self

    @property
    def examples_per_step(self) -> int:
        """Examples of one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def full_learning_rate(self) -> float:
        """The rate that the schedule scales: as given, else the method's usual one."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    def resolved(self) -> TrainSpec:
        """The same spec with the defaults that depend on other settings filled in."""
        return self.model_copy(update={"learning_rate": self.full_learning_rate})


def about(name: str) -> About:
    """What a person reads about the setting `name`."""
    return next(item for item in TrainSpec.model_fields[name].metadata if isinstance(item, About))


def limits(name: str) -> dict[str, float]:
    """The limits of the setting `name`, as any of ge, gt, le, lt, min_length, max_length."""
    found: dict[str, float] = {}
    for item in TrainSpec.model_fields[name].metadata:
        for key in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if getattr(item, key, None) is not None:
                found[key] = getattr(item, key)
    return found


def choices(name: str) -> list[str]:
    """The values the setting `name` may take, [] when it is not a choice."""
    field: FieldInfo = TrainSpec.model_fields[name]
    values = get_args(field.annotation)
    return [value for value in values if isinstance(value, str)]
