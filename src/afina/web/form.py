"""The training form: every setting of the spec as something to draw, in the order of the page.

Built from `core/spec.py` alone, so that a setting that is added there appears here with its label, help, limits and
default. Knows nothing of HTTP.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from afina.core.messages import N_
from afina.core.spec import LEARNING_RATES, TrainSpec, about, choices, limits

Kind = Literal["number", "choice", "text", "paragraph", "words", "lines", "dataset"]

GROUPS: dict[str, str] = {
    "length": N_("Length and validation"),
    "optimizer": N_("Optimizer"),
    "lora": N_("LoRA"),
    "watching": N_("Watching and saving"),
    "machine": N_("Machine"),
    "text": N_("Conversation"),
    "notes": N_("Notes and tags"),
}
"""The advanced groups in their order → title."""

CHOICES: dict[str, str] = {
    "auto": N_("automatic"),
    "none": N_("none"),
    "8bit": N_("8 bits"),
    "4bit": N_("4 bits (QLoRA)"),
    "on": N_("on"),
    "off": N_("off"),
    "answers": N_("answers only"),
    "all": N_("questions and answers"),
    "linear": N_("linear, down to zero"),
    "cosine": N_("cosine, slow at first"),
    "constant": N_("constant"),
    "inverse_sqrt": N_("inverse square root"),
    "lora": N_("LoRA"),
    "full": N_("full fine-tuning"),
    "adamw": "AdamW",
    "adafactor": "Adafactor",
    "sgd": "SGD",
    "cuda": N_("graphics card (CUDA)"),
    "xpu": N_("graphics card of Intel (XPU)"),
    "mps": N_("graphics of a Mac (MPS)"),
    "cpu": N_("processor (CPU)"),
    "float32": "float32",
    "bfloat16": "bfloat16",
    "chatml": "ChatML",
    "plain": N_("plain text"),
}
"""What a person reads for a choice's value."""

_LONG = {"system_prompt", "notes"}
_ONE_PER_LINE = {"sample_prompts"}
_LARGEST_SHOWN = 10_000


@dataclass(frozen=True)
class Field:
    """One setting. `value` is the text in its input; `low` and `high` are limits, None where there is none to show;
    `whole` says that only integers will do; `label`, `help` and `unit` are catalogue keys."""

    name: str
    label: str
    help: str
    unit: str | None
    kind: Kind
    value: str
    default: str
    whole: bool = False
    low: float | None = None
    high: float | None = None
    usual: tuple[float, float] | None = None
    choices: tuple[tuple[str, str], ...] = ()
    required: bool = False


def fields(values: Mapping[str, Any]) -> dict[str, Field]:
    """Every setting that has a plain input (not model, dataset and method), with `values` or else its default in it."""
    return {name: _field(name, values) for name in TrainSpec.model_fields if about(name).group != "what"}


def groups(made: Mapping[str, Field]) -> list[tuple[str, str, list[Field]]]:
    """The advanced fieldsets: (name, title, fields). The run's name stands beside the start button instead."""
    return [
        (group, title, [made[name] for name in made if about(name).group == group and name != "name"])
        for group, title in GROUPS.items()
    ]


def basic(made: Mapping[str, Field]) -> list[Field]:
    """The numbers that are always visible."""
    return [made[name] for name in made if about(name).basic]


def default(name: str) -> Any:
    """The default of a setting, None where it has none."""
    value = TrainSpec.model_fields[name].default
    return None if value is PydanticUndefined else value


def learning_rates() -> dict[str, str]:
    """The learning rate each method uses when the field is empty, as typed."""
    return {method: _plain(rate) for method, rate in LEARNING_RATES.items()}


def _field(name: str, values: Mapping[str, Any]) -> Field:
    told, bounds, standard = about(name), limits(name), default(name)
    accepted = _types(name)
    numeric = bool(accepted & {int, float})
    high = bounds.get("le", bounds.get("lt"))
    return Field(
        name=name,
        label=told.label,
        help=told.help,
        unit=told.unit,
        kind=_kind(name, numeric),
        value=_plain(values.get(name, standard)),
        default=_plain(standard),
        whole=numeric and float not in accepted,
        low=bounds.get("ge", bounds.get("gt")) if numeric else None,
        high=high if numeric and high is not None and high <= _LARGEST_SHOWN else None,
        usual=told.usual,
        choices=tuple((value, CHOICES.get(value, value)) for value in choices(name)),
        required=numeric and type(None) not in accepted,
    )


def _kind(name: str, numeric: bool) -> Kind:
    if choices(name):
        return "choice"
    if numeric:
        return "number"
    if name == "validation_dataset":
        return "dataset"
    if name in _ONE_PER_LINE:
        return "lines"
    if list in _types(name):
        return "words"
    return "paragraph" if name in _LONG else "text"


def _types(name: str) -> set[type]:
    annotation = TrainSpec.model_fields[name].annotation
    parts = get_args(annotation) if get_origin(annotation) in (types.UnionType,) else (annotation,)
    return {get_origin(part) or part for part in parts}


def _plain(value: Any) -> str:
    """A setting as a person types it: 0.0002 rather than 2e-04, words with commas, prompts one a line."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0").rstrip(".")
    if isinstance(value, list | tuple):
        texts = [str(item) for item in value]
        return "\n".join(texts) if any("," in text or " " in text for text in texts) else ", ".join(texts)
    return str(value)
