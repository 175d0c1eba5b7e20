"""`/api/v1/datasets`: the files in `training/datasets`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from afina import actions
from afina.core.messages import Message
from afina.data.faults import Fault
from afina.registry.records import DatasetInfo
from afina.web.api.records import DatasetDetail, Deleted, ReportRecord, RowFault, RowRecord, RowsPage, TokensPage
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


@router.get("/{name}")
def get(request: Request, name: str) -> DatasetDetail:
    """One dataset, with the report on everything that is wrong with it."""
    info, report = actions.dataset(request.app.state.home, name)
    said = ReportRecord.model_validate(report.as_json(speaker(request).write))
    return DatasetDetail(**info.model_dump(), report=said)


@router.get("/{name}/rows")
def rows(request: Request, name: str, offset: Offset = 0, limit: Limit = 20) -> RowsPage:
    """Some rows as conversations or texts, with what is wrong with each."""
    write = speaker(request).write
    found = actions.dataset_rows(request.app.state.home, name, offset, limit)
    for row in found["rows"]:
        row["problems"] = [_fault(fault, write) for fault in row["problems"]]
    return RowsPage(rows=[RowRecord.model_validate(row) for row in found["rows"]], total=found["total"])


@router.get("/{name}/tokens")
def tokens(
    request: Request,
    name: str,
    model: Annotated[str, Query(min_length=1, max_length=1000)],
    offset: Offset = 0,
    limit: Limit = 20,
    max_length: Annotated[int | None, Query(ge=16, le=1_048_576)] = None,
) -> TokensPage:
    """Some rows as tokens of `model`, each learned, only read, or cut at `max_length`."""
    found = actions.dataset_tokens(request.app.state.home, name, model, offset, limit, max_length)
    return TokensPage.model_validate(found)


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
