"""What the API, the CLI and the pages show of models, datasets and runs. Plain data; knows nothing of tables.

Texts for people are kept as `Message` beside the English sentence, so that `in_words(write)` can say them in any
language: `write` is a translator's function from `Message` to `str`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from afina.core.events import Status
from afina.core.messages import Message

Write = Callable[[Message], str]
HiddenMessage = Annotated[SkipValidation[Message | None], Field(exclude=True, repr=False)]


class Record(BaseModel):
    """Base of all records: unknown fields are a mistake."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class Explanation(Record):
    """Why something went wrong: a stable code, a sentence, the next step."""

    code: str
    message: str
    remedy: str | None = None
    said: HiddenMessage = None
    said_remedy: HiddenMessage = None

    @classmethod
    def of(cls, code: str, message: Message, remedy: Message | None = None) -> Explanation:
        """Build it from messages, in English until `in_words` is asked for."""
        return cls(
            code=code,
            message=str(message),
            remedy=str(remedy) if remedy else None,
            said=message,
            said_remedy=remedy,
        )

    def in_words(self, write: Write) -> Explanation:
        """The same in another language."""
        message = write(self.said) if self.said else self.message
        remedy = write(self.said_remedy) if self.said_remedy else self.remedy
        return self.model_copy(update={"message": message, "remedy": remedy})


class DatasetUse(Record):
    """A dataset inside a run."""

    name: str
    weight: float = 1.0


class DatasetInfo(Record):
    """A file in `training/datasets`. Counts are null until the file has been looked through."""

    name: str
    size: int = Field(description="Bytes.")
    modified: float = Field(description="Seconds since 1970.")
    format: str | None = None
    rows: int | None = None
    tokens: int | None = None
    answer_tokens: int | None = None
    errors: int | None = Field(default=None, description="Kinds of problems that block training.")
    warnings: int | None = Field(default=None, description="Kinds of problems that do not.")
    last_used: str | None = Field(default=None, description="Id of the newest run that used it.")
    edited: bool = Field(default=False, description="Whether a version made of the file is used in its place.")
    changed: bool = Field(default=False, description="Whether the file has changed since that version was made of it.")
    status: Literal["ready", "broken"] = "ready"


class StepInfo(Record):
    """One step in the history of a dataset: what was done, to how many rows, and the version that came of it."""

    number: int
    parent: int | None = Field(default=None, description="The step it was made from; null: read from the file.")
    what: Literal["file", "fix", "edit", "add", "remove"]
    code: str | None = Field(default=None, description="The problem that a remedy was for.")
    way: str | None = Field(default=None, description="The remedy.")
    version: str = Field(description="SHA-256 of the rows.")
    rows: int
    removed: int = 0
    changed: int = 0
    added: int = 0
    left_out: int = Field(default=0, description="Places that could not be read and were no rows.")
    at: float = Field(description="Seconds since 1970.")
    current: bool = False
    message: str
    said: HiddenMessage = None

    def in_words(self, write: Write) -> StepInfo:
        """The same in another language."""
        return self.model_copy(update={"message": write(self.said)}) if self.said else self


class HistoryInfo(Record):
    """What a dataset has been through, oldest step first."""

    name: str
    current: int = Field(description="Number of the step that training uses.")
    changed: bool = Field(description="Whether the file in the folder has changed since it was read.")
    steps: list[StepInfo]

    def in_words(self, write: Write) -> HistoryInfo:
        """The same in another language."""
        return self.model_copy(update={"steps": [step.in_words(write) for step in self.steps]})


class ModelInfo(Record):
    """A base model, or the result of a run."""

    id: str = Field(description="The name used everywhere: the folder's name, or the id of the run.")
    name: str
    aliases: list[str] = []
    kind: Literal["base", "lora", "full"]
    architecture: str | None = None
    parameters: int | None = None
    size: int = Field(default=0, description="Bytes of its weights.")
    licence: str | None = None
    source: str | None = None
    parent: str | None = Field(default=None, description="Id of the model it was trained from.")
    run: str | None = Field(default=None, description="Id of the run it came from.")
    dataset: list[str] = []
    created: float
    context_length: int | None = None
    has_chat_template: bool = False
    status: Literal["ready", "adding", "broken"] = "ready"
    problem: Explanation | None = None
    progress: float | None = Field(default=None, description="From 0 to 1 while it is being added.")

    def in_words(self, write: Write) -> ModelInfo:
        """The same with its problem in another language."""
        return self.model_copy(update={"problem": self.problem.in_words(write)}) if self.problem else self


class RunInfo(Record):
    """A run and where it stands. Times are seconds since 1970, durations seconds, losses nats per answer token."""

    id: str
    name: str
    status: Status
    created: float
    started: float | None = None
    ended: float | None = None
    model: str
    dataset: list[DatasetUse]
    method: str
    spec: dict[str, Any]
    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    best_step: int | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    tokens_per_second: float | None = None
    queue_position: int | None = Field(default=None, description="1 is next.")
    output: str | None = Field(default=None, description="Absolute path of the result.")
    error: Explanation | None = None
    phase: str | None = None
    sparkline: list[float] = Field(default=[], description="Training loss, at most 40 points.")
    resumable: bool = False

    def in_words(self, write: Write) -> RunInfo:
        """The same with its error in another language."""
        return self.model_copy(update={"error": self.error.in_words(write)}) if self.error else self


class Plan(Record):
    """What a run would do, before it is started. Null: not known on this machine."""

    rows: int
    validation_rows: int
    tokens: int | None = None
    answer_tokens: int | None = None
    cut_tokens: int | None = None
    steps_per_epoch: int
    total_steps: int
    memory: int | None = Field(default=None, description="Expected peak, bytes.")
    seconds: float | None = Field(default=None, description="Expected duration.")
    step_seconds: float | None = Field(default=None, description="Of a usual step, where it was measured.")
    measured: bool = Field(default=False, description="Memory and time were measured, not estimated.")
    busy: bool = Field(default=False, description="They could not be measured, for a run was computing.")
