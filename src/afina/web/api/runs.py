"""`/api/v1/runs`: plan, start, follow, stop, resume and delete runs. The live socket is in `web/live.py`."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from afina import actions
from afina.registry.records import RunInfo
from afina.web.api.records import Console, Deleted, Events, PlanRecord, Spec, StopRun
from afina.web.errors import finite
from afina.web.language import localise, speaker

router = APIRouter(prefix="/runs", tags=["runs"])
Offset = Annotated[int, Query(ge=0, le=2**43, description="Bytes already read.")]


@router.get("")
def list_runs(request: Request) -> list[RunInfo]:
    """All runs, newest first."""
    write = speaker(request).write
    return [run.in_words(write) for run in actions.list_runs(request.app.state.home)]


@router.post("", status_code=201)
def start(request: Request, spec: Spec) -> RunInfo:
    """Start a run; it waits in the queue while another one computes. All that is wrong with it is told at once."""
    return actions.start_run(request.app.state.home, spec).in_words(speaker(request).write)


@router.post("/plan")
def plan(request: Request, spec: Spec) -> PlanRecord:
    """What a run would do, before it is started: rows, steps, tokens, memory, time. Starts and writes nothing.

    A spec that cannot be run is no failure here: what is wrong with it comes in `problems`.
    """
    found = actions.plan_run(request.app.state.home, spec).as_json(speaker(request).write)
    return PlanRecord.model_validate(finite(found))


@router.post("/check")
async def check(request: Request, spec: Spec) -> PlanRecord:
    """As `plan`, but memory, time and tokens are measured: the longest rows are computed once. Takes some seconds.

    While a run computes, the estimate comes back, with `busy`. Hanging up ends the measurement.
    """
    gone = threading.Event()
    measuring = asyncio.create_task(
        run_in_threadpool(actions.check_run, request.app.state.home, spec, cancelled=gone.is_set)
    )
    try:
        while not (await asyncio.wait({measuring}, timeout=0.3))[0]:
            if await request.is_disconnected():
                gone.set()
    except asyncio.CancelledError:  # the server stops
        gone.set()
        raise
    found = measuring.result().as_json(speaker(request).write)
    return PlanRecord.model_validate(finite(found))


@router.get("/{ref}")
def get(request: Request, ref: str) -> RunInfo:
    """One run, by id or name."""
    return actions.get_run(request.app.state.home, ref).in_words(speaker(request).write)


@router.delete("/{ref}")
def delete(request: Request, ref: str) -> Deleted:
    """Delete a run with its checkpoints and its result. One that is computing must be stopped first."""
    home = request.app.state.home
    request.app.state.chat.unload(home.runs / actions.get_run(home, ref).id)
    actions.delete_run(home, ref)
    return Deleted(deleted=ref)


@router.post("/{ref}/stop")
def stop(request: Request, ref: str, body: StopRun | None = None) -> RunInfo:
    """Stop a run and keep the last or the best weights; one that still waits is taken out of the queue."""
    keep = (body or StopRun()).keep
    return actions.stop_run(request.app.state.home, ref, keep).in_words(speaker(request).write)


@router.post("/{ref}/resume")
def resume(request: Request, ref: str) -> RunInfo:
    """Go on with a run that ended early, from its newest checkpoint."""
    return actions.resume_run(request.app.state.home, ref).in_words(speaker(request).write)


@router.get("/{ref}/events", response_model=Events)
def events(request: Request, ref: str, offset: Offset = 0) -> Response:
    """What the run has said since byte `offset` of its log; whole lines only, some megabytes at a time."""
    found, after = actions.run_events(request.app.state.home, ref, offset)
    return _json({"events": localise(found, speaker(request)), "offset": after})


@router.get("/{ref}/console", response_model=Console)
def console(request: Request, ref: str, offset: Annotated[int, Query(ge=-(2**43), le=2**43)] = 0) -> Response:
    """What the run has printed since byte `offset`; a negative offset asks for that many last bytes."""
    text, after = actions.run_console(request.app.state.home, ref, offset)
    return _json({"text": text, "offset": after})


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
