"""What the API takes and gives beyond the records of the registry."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, StringConstraints
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from afina.chat.protocol import Precision
from afina.core.spec import TrainSpec
from afina.registry.records import DatasetInfo, Plan
from afina.web.errors import ProblemRecord

Text = Annotated[str, StringConstraints(max_length=1_000_000)]


class _LikeTrainSpec:
    """Describes a plain object as a `TrainSpec`, leaving its validation to `actions`, which finds every problem."""

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(TrainSpec.__pydantic_core_schema__)


Spec = Annotated[dict[str, Any], _LikeTrainSpec()]


class Given(BaseModel):
    """Base of what is sent to us: a field we do not know is a mistake, not something to pass over."""

    model_config = ConfigDict(extra="forbid")


class FaultRecord(BaseModel):
    """One finding."""

    row: int | None = Field(description="Counted from 1; null: the file as a whole.")
    line: int | None
    field: str | None
    value: str | None
    message: str


class RemedyRecord(BaseModel):
    """A remedy that `POST …/fix` applies: its name, what a button says, what will happen."""

    way: str
    button: str
    consequence: str


class GroupRecord(BaseModel):
    """One kind of problem in a dataset, with the first rows it was found in."""

    code: str
    severity: Literal["error", "warning", "note"]
    count: int = Field(description="How many rows.")
    rows: list[int] = Field(description="The first of them, counted from 1.")
    lines: list[int] = Field(description="Their lines in the file.")
    message: str
    remedy: str
    excerpts: list[str]
    details: list[FaultRecord]
    remedies: list[RemedyRecord] = Field(default=[], description="What one call can do, the recommended one first.")


class ReportRecord(BaseModel):
    """What a look through the whole file found. Counts of tokens are null while there is no model to count with."""

    format: str | None
    rows: int
    tokens: int | None
    answer_tokens: int | None
    cut_tokens: int | None
    longest: int | None
    estimated: bool = Field(description="Tokens were counted in a part of the rows, for the file is very large.")
    lengths: list[tuple[int, int]] = Field(description="(tokens at most, rows), in order of length.")
    errors: list[GroupRecord]
    warnings: list[GroupRecord]
    notes: list[GroupRecord] = Field(description="What is worth knowing and needs nothing done.")


class TurnRecord(BaseModel):
    """One thing said in an example."""

    role: str
    content: str
    weight: float = 1.0
    tool_calls: list[Any] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class RowFault(FaultRecord):
    """One finding in a row."""

    code: str


class RowRecord(BaseModel):
    """One row: a conversation, a text, or a preference, and what is wrong with it."""

    row: int
    turns: list[TurnRecord] | None = None
    text: str | None = None
    chosen: list[TurnRecord] | None = None
    rejected: list[TurnRecord] | None = None
    raw: Any = Field(default=None, description="The row as it stood in the file, where it could not be made out.")
    problems: list[RowFault]


class RowsPage(BaseModel):
    """Some rows of a dataset; `total` counts those that were asked for."""

    rows: list[RowRecord]
    total: int
    version: str = Field(description="SHA-256 of the rows.")


class PieceRecord(BaseModel):
    """One token as people see it, and whether it is learned, only read, or cut."""

    text: str
    state: Literal["learned", "read", "cut"]


class TokensRecord(BaseModel):
    """One row as the model sees it."""

    row: int
    tokens: int
    learned: int
    cut: int
    pieces: list[PieceRecord]


class TokensPage(BaseModel):
    """Some rows of a dataset as tokens."""

    rows: list[TokensRecord]
    total: int
    version: str = Field(description="SHA-256 of the rows.")


class ChangeRecord(BaseModel):
    """A row that differs between two versions."""

    kind: Literal["removed", "added", "changed"]
    before: RowRecord | None
    after: RowRecord | None


class DiffPage(BaseModel):
    """What differs between two steps of a dataset's history."""

    before: int = Field(description="Number of the older step.")
    after: int
    removed: int
    added: int
    changed: int
    total: int
    changes: list[ChangeRecord]


class PlanRecord(Plan):
    """What a run would do, what its datasets are warned about, and what stands in its way."""

    warnings: list[GroupRecord]
    problems: list[ProblemRecord]


class Space(BaseModel):
    """Bytes."""

    total: int
    free: int


class MachineRecord(BaseModel):
    """What this machine can do, and what stands in the way."""

    system: str
    processor: str
    cores: int = Field(description="Physical ones.")
    threads: int = Field(description="What a run uses unless told otherwise.")
    vector: str | None = Field(description="The widest vector instructions of the processor.")
    memory: Space
    disk: Space
    accelerators: list[dict[str, Any]]
    versions: dict[str, str]
    home: str
    cache: str
    database: str
    problems: list[ProblemRecord]


class DatasetDetail(DatasetInfo):
    """A dataset with its report."""

    report: ReportRecord


class LookProgress(BaseModel):
    """How far a look through a dataset's file is, in bytes."""

    done: int
    total: int


class Deleted(BaseModel):
    """It is gone."""

    deleted: str


Version = Annotated[
    str | None,
    Field(default=None, max_length=64, description="Refuse when this is not the current version any more."),
]


class FixRequest(Given):
    """Which problem to put right, and how; the recommended way when none is named."""

    code: str = Field(min_length=1, max_length=60)
    way: str | None = Field(default=None, min_length=1, max_length=60)
    version: Version = None
    max_length: int | None = Field(
        default=None, ge=16, le=1_048_576, description="For too_long: tokens a row may have."
    )
    model: str | None = Field(default=None, min_length=1, max_length=1000, description="For too_long: whose tokens.")
    validation: str | None = Field(
        default=None, min_length=1, max_length=1000, description="For leak: the validation dataset."
    )


Messages = Annotated[list[dict[str, Any]], Field(max_length=10_000)]


class HubGiven(Given):
    """A dataset of the hub: `owner/name`, or with a split `owner/name:train`."""

    id: str = Field(min_length=1, max_length=300)


class RowGiven(Given):
    """A row: a conversation, a text, or a preference (`prompt`, `chosen`, `rejected`)."""

    messages: Messages | None = None
    text: Text | None = None
    prompt: Messages | None = None
    chosen: Messages | None = None
    rejected: Messages | None = None

    def content(self) -> dict[str, Any]:
        """What was given, as a plain object."""
        if self.chosen is not None or self.rejected is not None:
            return {"prompt": self.prompt or [], "chosen": self.chosen, "rejected": self.rejected}
        return {"text": self.text} if self.text is not None else {"messages": self.messages}


class EditRow(RowGiven):
    """What a row becomes."""

    version: Version = None


class AddRows(Given):
    """Rows to put at the end."""

    rows: list[RowGiven] = Field(min_length=1, max_length=10_000)
    version: Version = None


class RemoveRows(Given):
    """Rows to take out, by number."""

    rows: list[int] = Field(min_length=1, max_length=1_000_000)
    version: Version = None


class WrittenText(Given):
    """A text that someone writes or pastes."""

    text: Text


class WrittenDataset(WrittenText):
    """A text to keep as a file; the ending of its name follows what it is."""

    name: str = Field(min_length=1, max_length=200)


class PreviewRecord(BaseModel):
    """What a text is taken for: its first rows, and the report on all of them."""

    rows: list[RowRecord]
    report: ReportRecord


class ColumnsGiven(Given):
    """Which column holds what: a question and an answer, or a text alone."""

    prompt: str | None = Field(default=None, max_length=1000)
    answer: str | None = Field(default=None, max_length=1000)
    text: str | None = Field(default=None, max_length=1000)
    system: str | None = Field(default=None, max_length=1000)
    context: str | None = Field(default=None, max_length=1000, description="Belongs to the question.")


class ColumnsRecord(BaseModel):
    """The columns of a table that has to be explained, and what they are taken for."""

    columns: list[str]
    samples: list[dict[str, str]] = Field(description="The first rows, as texts.")
    chosen: ColumnsGiven
    remembered: bool
    rows: list[RowRecord] = Field(description="The first rows as they are read with it.")


class GoTo(Given):
    """The step of the history to use; null reads the file again."""

    step: int | None = Field(ge=0, le=1_000_000)


class AddModel(Given):
    """Where a model comes from: "starter", a folder, a GGUF file, or "hub:owner/name[@revision]"."""

    source: str = Field(min_length=1, max_length=4000)
    name: str | None = Field(default=None, min_length=1, max_length=100)


class StopRun(Given):
    """Which weights become the result."""

    keep: Literal["last", "best"] = "last"


class Events(BaseModel):
    """A stretch of a run's log."""

    events: list[dict[str, Any]]
    offset: int = Field(description="Byte offset to go on from.")


class Console(BaseModel):
    """A stretch of what a run printed."""

    text: str
    offset: int = Field(description="Byte offset to go on from.")


class ChatMessage(Given):
    """One thing said."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text


class ChatRequest(Given):
    """A question to a model. Temperature 0 always takes the likeliest token. precision: number format of its weights."""

    model: str = Field(min_length=1, max_length=1000)
    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    temperature: float = Field(default=0.7, ge=0, le=5)
    top_p: float = Field(default=0.9, gt=0, le=1)
    max_tokens: int = Field(default=512, ge=1, le=1_000_000)
    seed: int | None = Field(default=None, ge=0, le=2**32 - 1)
    precision: Precision = "auto"
