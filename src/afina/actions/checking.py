"""Trying a run out before it starts: the longest rows are computed once, in a process of its own, and nothing is kept.

The process is the worker of a run that nobody sees; it is ended as soon as it has said what it measured. Only one process
computes at a time in a home, so while a run does, the estimate has to do.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from afina.actions.planning import Planned, plan_run
from afina.actions.starting import prepare
from afina.core.errors import Problem
from afina.core.files import write_json
from afina.core.messages import Message
from afina.core.paths import Home
from afina.registry.records import Plan
from afina.runs.exit import explain
from afina.runs.launch import BUSY, WORKER, computing_lock, start_worker
from afina.runs.log import EventLog

LOOK_EVERY = 0.1
MEASURED = (
    "rows",
    "validation_rows",
    "tokens",
    "answer_tokens",
    "cut_tokens",
    "total_steps",
    "memory",
    "seconds",
    "step_seconds",
)


def _never() -> bool:
    return False


def check_run(
    home: Home, spec: Any, *, paths: bool = False, cancelled: Callable[[], bool] = _never, worker: str = WORKER
) -> Planned:
    """As `plan_run`, but measured: memory, time, tokens. Takes as long as loading the model and one step do.

    The plan says `measured`, or `busy` where another run computes and it is an estimate. cancelled: asked all the time;
    when it says so, or this is interrupted, the process is ended and the estimate is returned.
    """
    planned = plan_run(home, spec, paths=paths)
    if planned.plan is None:
        return planned
    lock = computing_lock(home)
    if not lock.acquire():
        return replace(planned, plan=planned.plan.model_copy(update={"busy": True}))
    lock.release()
    prepared = prepare(home, spec, paths=paths)
    folder = prepared.write(home)
    try:
        write_json(folder / "stop.json", {"keep": "last"})  # should nobody be left to end it
        process = start_worker(folder, prepared.spec.threads, worker)
        try:
            return _measured(planned, planned.plan, folder, process, cancelled)
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measured(
    planned: Planned, plan: Plan, folder: Path, process: subprocess.Popen[bytes], cancelled: Callable[[], bool]
) -> Planned:
    log, offset = EventLog(folder), 0
    while not cancelled():
        code = process.poll()  # first, so that what it said last is read below
        events, offset = log.read(offset)
        for event in events:
            if event["type"] == "preflight" and event["measured"]:
                known = {name: event[name] for name in MEASURED}
                return replace(planned, plan=plan.model_copy(update={**known, "measured": True}))
            if event["type"] == "failed":
                return Planned(None, planned.warnings, [_problem(event)])
        if code == BUSY:
            return replace(planned, plan=plan.model_copy(update={"busy": True}))
        if code is not None:
            failed = explain(folder, code, None)
            return Planned(None, planned.warnings, [Problem(failed.code, failed.message, failed.remedy)])
        time.sleep(LOOK_EVERY)
    return planned


def _problem(event: dict[str, Any]) -> Problem:
    """What a worker said of its end."""
    remedy = event.get("remedy")
    return Problem(event["code"], _message(event["message"]), _message(remedy) if remedy else None)


def _message(written: dict[str, Any]) -> Message:
    return Message(written["template"], written.get("values") or {})
