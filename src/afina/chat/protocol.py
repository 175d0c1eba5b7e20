"""What pool and worker say to each other: one JSON object a line.

To the worker: `{"ask": n, "messages": […], "max_tokens", "temperature", "top_p", "seed"}` and `{"cancel": n}`; it ends
when its input closes. From the worker: `{"loading": true}`, `{"ready": true, "seconds", "precision"}` or
`{"failed": problem}` about itself; `{"answer": n, "text"}`, `{"answer": n, "done": true, "stop_reason", "tokens",
"prompt_tokens", "tokens_per_second", "precision", "loss_rise"}` or `{"answer": n, "error": problem}` about a question, where a problem
is `{code, message: {text, template, values}, remedy}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from afina.core.errors import AfinaError, Kind, Problem
from afina.core.messages import Message

Precision = Literal["auto", "float32", "bfloat16", "int8"]
"""Number format of a model's weights; auto: the fastest one here that answers as well."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model. messages: `{"role", "content"}`; temperature 0 always takes the likeliest token."""

    messages: list[dict[str, str]]
    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9
    seed: int | None = None

    def as_json(self) -> dict[str, Any]:
        """As it travels to the worker."""
        return {
            "messages": self.messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }


def problem_as_json(error: AfinaError) -> dict[str, Any]:
    """The first problem of an error, its sentences still translatable."""
    problem = error.problems[0]
    return {
        "code": problem.code,
        "kind": error.kind,
        "field": problem.field,
        "message": problem.message.as_json(),
        "remedy": problem.remedy.as_json() if problem.remedy else None,
    }


def problem_from_json(data: dict[str, Any]) -> AfinaError:
    """The inverse of `problem_as_json`."""
    kind: Kind = data.get("kind", "failed")
    remedy = data.get("remedy")
    return AfinaError(
        Problem(data["code"], _message(data["message"]), _message(remedy) if remedy else None, data.get("field")), kind
    )


def _message(data: dict[str, Any]) -> Message:
    return Message(data["template"], data.get("values", {}))
