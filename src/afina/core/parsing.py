"""From what a person or a program gave to a `TrainSpec`, or to everything that is wrong with it, in sentences.

Knows the kinds of errors pydantic has, and no setting by name but those that depend on each other.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, Message, say
from afina.core.spec import TrainSpec


def parse_spec(data: Any) -> TrainSpec:
    """Validate completely. Raises AfinaError with every problem at once (`unknown_setting`, `missing_setting`,
    `out_of_range`, `not_a_choice`, `wrong_type`, `dataset_twice`, `quantization_needs_lora`)."""
    try:
        return TrainSpec.model_validate(data)
    except ValidationError as error:
        raise AfinaError([_problem(item) for item in error.errors(include_url=False)]) from None


_BOUNDS: dict[str, tuple[str, str]] = {
    "greater_than": ("gt", N_("“{field}” must be more than {limit}; it is {value}.")),
    "greater_than_equal": ("ge", N_("“{field}” must be at least {limit}; it is {value}.")),
    "less_than": ("lt", N_("“{field}” must be less than {limit}; it is {value}.")),
    "less_than_equal": ("le", N_("“{field}” must be at most {limit}; it is {value}.")),
}


def _problem(item: Any) -> Problem:
    """One pydantic error as a problem of ours."""
    kind, where, value, context = item["type"], item["loc"], item.get("input"), item.get("ctx", {})
    field = str(where[0]) if where else None
    name = ".".join(str(part) for part in where)
    change = say(N_("Change “{field}” and try again."), field=name)
    if kind == "extra_forbidden":
        return Problem(
            "unknown_setting",
            say(N_("There is no setting “{field}”."), field=name),
            say(N_("The settings are listed in the reference page.")),
            field,
            value,
        )
    if kind == "missing":
        return Problem(
            "missing_setting",
            say(N_("“{field}” is missing."), field=name),
            say(N_("Give a value for “{field}”."), field=name),
            field,
        )
    if kind in _BOUNDS:
        key, template = _BOUNDS[kind]
        return Problem(
            "out_of_range",
            Message(template, {"field": name, "limit": context[key], "value": _short(value)}),
            change,
            field,
            value,
        )
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        return Problem(
            "out_of_range", say(N_("“{field}” is empty or too long."), field=name), change, field, _short(value)
        )
    if kind == "literal_error":
        return Problem(
            "not_a_choice",
            say(
                N_("“{field}” cannot be “{value}”; it is one of: {choices}."),
                field=name,
                value=_short(value),
                choices=context.get("expected", ""),
            ),
            change,
            field,
            _short(value),
        )
    if kind == "value_error" and str(context.get("error")) == "quantization_needs_lora":
        return Problem(
            "quantization_needs_lora",
            say(N_("Weights of 8 or 4 bits cannot be trained themselves, so full fine-tuning needs them whole.")),
            say(N_("Choose LoRA as the method, or no quantisation.")),
            "quantization",
            value.quantization if isinstance(value, TrainSpec) else None,
        )
    if kind == "value_error":
        return Problem(
            "dataset_twice",
            say(N_("A dataset stands twice in the list.")),
            say(N_("Name each dataset once and give it a weight.")),
            "dataset",
        )
    return Problem(
        "wrong_type",
        say(N_("“{field}” cannot be “{value}”."), field=name, value=_short(value)),
        change,
        field,
        _short(value),
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:79] + "…"
