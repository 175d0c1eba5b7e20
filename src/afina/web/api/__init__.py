"""The REST API, `/api/v1`: one module a noun, each calling `actions` and nothing beneath it."""

from __future__ import annotations

from fastapi import APIRouter

from afina.web.api import chat, datasets, machine, models, runs
from afina.web.errors import ErrorRecord

router = APIRouter(
    prefix="/api/v1",
    responses={status: {"model": ErrorRecord} for status in (400, 401, 403, 404, 405, 409, 413, 422, 503)},
)
for part in (machine, datasets, models, runs, chat):
    router.include_router(part.router)
