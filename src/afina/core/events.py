"""What a run says while it runs. One dataclass a kind of event, its fields documented here and nowhere else.

Knows nothing of files: `runs/log.py` numbers, stamps and stores events; everyone else reads them back as plain objects
`{"seq": int, "time": seconds since 1970, "type": str, …fields}`. Losses are nats per answer token; memory is bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from afina.core.messages import Message

PhaseName = Literal[
    "queued", "starting", "loading_model", "reading_data", "sampling", "training", "evaluating", "saving"
]
Status = Literal["queued", "starting", "running", "stopping", "succeeded", "stopped", "failed"]
ACTIVE: frozenset[str] = frozenset({"starting", "running", "stopping"})
ENDED: frozenset[str] = frozenset({"succeeded", "stopped", "failed"})


@dataclass(frozen=True)
class Event:
    """Base of all events; `type` is the name in the log."""

    type: ClassVar[str]

    def as_json(self) -> dict[str, Any]:
        """A plain object; messages become `{text, template, values}`."""
        plain = {
            item.name: value.as_json() if isinstance(value, Message) else value
            for item in fields(self)
            if (value := getattr(self, item.name)) is not None
        }
        return {"type": self.type, **{key: _plain(value) for key, value in plain.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


@dataclass(frozen=True)
class Phase(Event):
    """The run entered a stretch of work; `detail` says more when there is more to say."""

    type = "phase"
    name: PhaseName
    detail: Message | None = None


@dataclass(frozen=True)
class Preflight(Event):
    """What is about to happen: counts, and what the machine will need for it.

    rows, validation_rows: examples; tokens, answer_tokens: of one pass over the training rows; cut_tokens: tokens past
    `max_length`, lost; steps_per_epoch, total_steps: optimizer steps; trainable_parameters, parameters: counts;
    memory: expected peak, bytes; seconds: expected duration from here on; step_seconds: of a usual step, None where nothing
    was computed; measured: all three follow from the longest rows, which were computed once, and not from a guess;
    precision, device: what was chosen;
    path: "fast" (layers computed by Afina), "packed" (transformers' layers, examples end to end) or "reference"
    (transformers' and PEFT's own forward, an example at a time); attention: the kernel, “split” (an example at a time),
    “varlen”, “flash” or “flex” (a whole row at once, on graphics cards); shared_prefixes: the share of an epoch's tokens that
    need not be computed, because examples begin alike (0: not in use).
    """

    type = "preflight"
    rows: int
    validation_rows: int
    tokens: int
    answer_tokens: int
    cut_tokens: int
    steps_per_epoch: int
    total_steps: int
    trainable_parameters: int
    parameters: int
    precision: str
    device: str
    path: str = "fast"
    memory: int | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    measured: bool = False
    shared_prefixes: float = 0.0
    attention: str = "split"


@dataclass(frozen=True)
class Step(Event):
    """One optimizer step is done.

    step counts from 1 to total_steps; epoch is fractional; loss is the mean over all answer tokens of the step;
    tokens are the real (never padding) input tokens of the step, those of shared prefixes in every example; memory is the resident or device peak so far, bytes;
    seconds_left is the estimate for the rest of the run.
    """

    type = "step"
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    memory: int
    seconds_left: float


@dataclass(frozen=True)
class Eval(Event):
    """Validation loss at `step` (0: before training); `best` when it is the lowest so far."""

    type = "eval"
    step: int
    loss: float
    perplexity: float
    best: bool
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Answer:
    """What the model says to one fixed prompt; `expected` is the dataset's own answer where there is one."""

    prompt: str
    answer: str
    expected: str | None = None


@dataclass(frozen=True)
class Sample(Event):
    """Greedy answers to the fixed prompts; `when` is before, during or after training."""

    type = "sample"
    step: int
    when: Literal["before", "during", "after"]
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint(Event):
    """A checkpoint is complete on disk; `path` is relative to the run folder; `removed` names those pruned."""

    type = "checkpoint"
    step: int
    path: str
    best: bool
    removed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Advice(Event):
    """A plain-language reading of the curves. `code` is stable (`overfitting`, `still_learning`, `diverging`, …)."""

    type = "advice"
    code: str
    step: int
    message: Message


@dataclass(frozen=True)
class Retry(Event):
    """Something ran out and the run goes on with less, same effective batch."""

    type = "retry"
    step: int
    message: Message


@dataclass(frozen=True)
class Warn(Event):
    """Something the person should know; the run goes on."""

    type = "warning"
    code: str
    message: Message


@dataclass(frozen=True)
class Finished(Event):
    """The run did all its steps (or stopped early by patience). `output` is relative to the run folder."""

    type = "finished"
    step: int
    train_loss: float
    validation_loss: float | None
    output: str
    seconds: float
    best_step: int | None = None


@dataclass(frozen=True)
class Stopped(Event):
    """The person stopped the run; `kept` says which weights are the result ("last" or "best"), `output` where."""

    type = "stopped"
    step: int
    kept: Literal["last", "best", "none"]
    output: str | None
    train_loss: float | None = None
    validation_loss: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Failed(Event):
    """The run ended without its result. `code` is stable (`loss_not_finite`, `out_of_memory`, `killed`, …)."""

    type = "failed"
    code: str
    message: Message
    remedy: Message | None = None
    step: int | None = None
