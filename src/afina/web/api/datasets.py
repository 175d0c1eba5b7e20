"""`/api/v1/datasets`: the files in `training/datasets`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from afina import actions
from afina.core.messages import Message
from afina.data.faults import Fault
from afina.registry.records import DatasetInfo, HistoryInfo, StepInfo
from afina.web.api.records import (
    AddRows,
    ColumnsGiven,
    ColumnsRecord,
    DatasetDetail,
    Deleted,
    DiffPage,
    EditRow,
    FixRequest,
    GoTo,
    HubGiven,
    LookProgress,
    PreviewRecord,
    RemoveRows,
    ReportRecord,
    RowFault,
    RowRecord,
    RowsPage,
    TokensPage,
    WrittenDataset,
    WrittenText,
)
from afina.web.language import speaker
from afina.web.upload import FIELD, received

router = APIRouter(prefix="/datasets", tags=["datasets"])
Offset = Annotated[int, Query(ge=0, le=2**53)]
Limit = Annotated[int, Query(ge=1, le=200)]
UPLOAD = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {FIELD: {"type": "string", "format": "binary"}},
            }
        }
    },
}


@router.get("")
def list_datasets(request: Request) -> list[DatasetInfo]:
    """All datasets, by name."""
    return actions.list_datasets(request.app.state.home)


@router.post("", status_code=201, openapi_extra={"requestBody": UPLOAD})
async def upload(request: Request) -> DatasetInfo:
    """Upload a file. When another file has its name it gets a number; the same content again is kept once."""
    async with received(request) as came:
        return await run_in_threadpool(actions.add_dataset, request.app.state.home, came.name, came.file)


@router.post("/preview")
def preview(request: Request, given: WrittenText) -> PreviewRecord:
    """What a text would be taken for. Nothing is kept."""
    write = speaker(request).write
    found = actions.preview_text(request.app.state.home, given.text)
    report = ReportRecord.model_validate(found.report.as_json(write))
    return PreviewRecord(rows=[_row(row, write) for row in found.rows], report=report)


@router.post("/written", status_code=201)
def written(request: Request, given: WrittenDataset) -> DatasetInfo:
    """Keep a text as a dataset. When another file has its name it gets a number."""
    return actions.write_dataset(request.app.state.home, given.name, given.text)


@router.post("/hub", status_code=201)
def from_hub(request: Request, given: HubGiven) -> DatasetInfo:
    """Bring a dataset of the hub into the datasets folder. Needs a network unless it is here already."""
    return actions.bring_dataset(request.app.state.home, given.id)


@router.get("/{name}")
def get(request: Request, name: str) -> DatasetDetail:
    """One dataset, with the report on everything that is wrong with it."""
    info, report = actions.dataset(request.app.state.home, name)
    said = ReportRecord.model_validate(report.as_json(speaker(request).write))
    return DatasetDetail(**info.model_dump(), report=said)


@router.get("/{name}/progress")
def progress(request: Request, name: str) -> LookProgress | None:
    """How far the look through a large file is that is under way; null when none is."""
    found = actions.look_progress(request.app.state.home, name)
    return None if found is None else LookProgress(done=found[0], total=found[1])


Problem = Annotated[str | None, Query(max_length=60, description="Only rows with this code.")]
Search = Annotated[str | None, Query(max_length=1000, description="Only rows that hold this text.")]
MaxLength = Annotated[int | None, Query(ge=16, le=1_048_576)]


@router.get("/{name}/rows")
def rows(
    request: Request,
    name: str,
    offset: Offset = 0,
    limit: Limit = 20,
    problem: Problem = None,
    search: Search = None,
    max_length: MaxLength = None,
) -> RowsPage:
    """Some rows as conversations or texts, with what is wrong with each."""
    write = speaker(request).write
    asked = actions.Asked(problem, search, max_length)
    found = actions.dataset_rows(request.app.state.home, name, offset, limit, asked)
    return RowsPage.model_validate({**found, "rows": [_row(row, write) for row in found["rows"]]})


@router.get("/{name}/tokens")
def tokens(
    request: Request,
    name: str,
    model: Annotated[str, Query(min_length=1, max_length=1000)],
    offset: Offset = 0,
    limit: Limit = 20,
    max_length: MaxLength = None,
    problem: Problem = None,
    search: Search = None,
) -> TokensPage:
    """Some rows as tokens of `model`, each learned, only read, or cut at `max_length`."""
    asked = actions.Asked(problem, search, max_length)
    found = actions.dataset_tokens(request.app.state.home, name, model, offset, limit, max_length, asked)
    return TokensPage.model_validate(found)


@router.post("/{name}/fix")
def fix(request: Request, name: str, given: FixRequest) -> StepInfo:
    """Apply a remedy. It makes a new version; the file stays as it is."""
    asked = actions.Fix(**given.model_dump())
    return actions.fix_dataset(request.app.state.home, name, asked).in_words(speaker(request).write)


@router.post("/{name}/rows", status_code=201)
def add_rows(request: Request, name: str, given: AddRows) -> StepInfo:
    """Put rows at the end, in a new version."""
    contents = [row.content() for row in given.rows]
    step = actions.add_rows(request.app.state.home, name, contents, given.version)
    return step.in_words(speaker(request).write)


@router.post("/{name}/rows/remove")
def remove_rows(request: Request, name: str, given: RemoveRows) -> StepInfo:
    """Take rows out, in a new version."""
    step = actions.remove_rows(request.app.state.home, name, given.rows, given.version)
    return step.in_words(speaker(request).write)


@router.put("/{name}/rows/{row}")
def edit_row(request: Request, name: str, row: Annotated[int, Path(ge=0, le=2**31)], given: EditRow) -> StepInfo:
    """Replace a row, in a new version."""
    step = actions.edit_row(request.app.state.home, name, row, given.content(), given.version)
    return step.in_words(speaker(request).write)


@router.get("/{name}/history")
def history(request: Request, name: str) -> HistoryInfo:
    """What the dataset has been through, and which step training uses."""
    return actions.dataset_history(request.app.state.home, name).in_words(speaker(request).write)


@router.post("/{name}/history")
def go_to(request: Request, name: str, given: GoTo) -> HistoryInfo:
    """Use another step of the history, or read the file again."""
    home = request.app.state.home
    found = actions.start_again(home, name) if given.step is None else actions.go_back(home, name, given.step)
    return found.in_words(speaker(request).write)


@router.get("/{name}/columns")
def columns(request: Request, name: str) -> ColumnsRecord | None:
    """What the columns of a table are taken for; null where their names say it."""
    return _columns(request, actions.column_mapping(request.app.state.home, name))


@router.put("/{name}/columns")
def set_columns(request: Request, name: str, given: ColumnsGiven) -> ColumnsRecord | None:
    """Say which column holds what. It is remembered for this file."""
    return _columns(request, actions.set_column_mapping(request.app.state.home, name, given.model_dump()))


def _columns(request: Request, found: actions.Columns | None) -> ColumnsRecord | None:
    if found is None:
        return None
    write = speaker(request).write
    rows = [_row(row, write) for row in found.rows]
    return ColumnsRecord.model_validate({**vars(found), "rows": rows})


@router.get("/{name}/diff")
def diff(
    request: Request,
    name: str,
    before: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
    after: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
    offset: Offset = 0,
    limit: Limit = 20,
) -> DiffPage:
    """What differs between two steps: by default the current one and the one it was made from."""
    write = speaker(request).write
    found = actions.dataset_diff(request.app.state.home, name, before, after, offset, limit)
    changes = [
        {"kind": item["kind"]} | {side: item[side] and _row(item[side], write) for side in ("before", "after")}
        for item in found["changes"]
    ]
    return DiffPage.model_validate({**found, "changes": changes})


@router.get("/{name}/export", response_class=StreamingResponse, responses={200: {"content": {"application/jsonl": {}}}})
def export(request: Request, name: str) -> StreamingResponse:
    """The rows that can be used, as JSON lines in the form of conversations or texts."""
    lines = actions.export_dataset(request.app.state.home, name)
    stem = name.rsplit(".", 1)[0] if "." in name else name
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(stem + '.jsonl')}"}
    return StreamingResponse(_gathered(lines), media_type="application/jsonl", headers=headers)


def _gathered(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Fewer, larger pieces."""
    while piece := b"".join(islice(lines, 500)):
        yield piece


def _row(row: dict[str, Any], write: Callable[[Message], str]) -> RowRecord:
    return RowRecord.model_validate({**row, "problems": [_fault(fault, write) for fault in row["problems"]]})


@router.delete("/{name}")
def delete(request: Request, name: str) -> Deleted:
    """Delete the file. Runs that used it keep their own copy."""
    actions.delete_dataset(request.app.state.home, name)
    return Deleted(deleted=name)


def _fault(fault: Fault, write: Callable[[Message], str]) -> RowFault:
    return RowFault(
        code=fault.code,
        row=fault.row,
        line=fault.line,
        field=fault.field,
        value=fault.value,
        message=write(fault.message),
    )
