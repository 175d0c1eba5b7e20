"""Runs: starting, looking, stopping, resuming and deleting. What a start checks is in `starting.py`."""

from __future__ import annotations

import errno
import os
import shutil
import time
from typing import Any, Literal

from sqlalchemy.orm import Session

from afina.actions.starting import prepare, publish
from afina.core.errors import AfinaError, Problem
from afina.core.events import ACTIVE, Phase, Stopped
from afina.core.files import write_json
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.registry import runs as rows
from afina.registry.records import RunInfo
from afina.registry.tables import RunRow
from afina.runs import view
from afina.runs.index import fill, index, queue_held, row_of
from afina.runs.log import EventLog, read_console

Keep = Literal["last", "best"]


def start_run(home: Home, spec: Any, *, paths: bool = False) -> RunInfo:
    """Check a spec completely, freeze its datasets and put the run into the queue.

    spec: a `TrainSpec` or a plain object; paths: whether model and datasets may also be given as paths on this machine
    (the command line may, the web may not). Raises AfinaError with every problem at once.
    """
    plan = prepare(home.create(), spec, paths=paths)
    making = plan.write(home)
    with index(home) as session, queue_held(home):
        folder = publish(making)
        row = row_of(folder)
        if row is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        session.add(row)
        session.commit()
        return view.info(home, session, row)


def list_runs(home: Home) -> list[RunInfo]:
    """Every run, newest first."""
    with index(home) as session:
        return [view.info(home, session, row) for row in rows.all_runs(session)]


def get_run(home: Home, ref: str) -> RunInfo:
    """One run by id, name, or the beginning of its id. Raises AfinaError `run_not_found`, `run_ambiguous`."""
    with index(home) as session:
        return view.info(home, session, rows.find(session, ref))


def stop_run(home: Home, ref: str, keep: Keep = "last") -> RunInfo:
    """Ask a run to stop and keep its last or its best weights; a waiting run leaves the queue at once.

    Raises AfinaError `run_not_found`, `run_ended`.
    """
    with index(home) as session:
        row = rows.find(session, ref)
        now = time.time()
        if rows.change(session, row.id, ["queued"], status="stopped", ended=now):
            EventLog(view.run_folder(home, row.id)).append(Stopped(0, "none", None))
            return _refreshed(home, session, row.id)
        info = view.info(home, session, row)
        if info.status not in ACTIVE:
            raise _conflict("run_ended", say(N_("The run “{run}” has already ended."), run=row.name), row.id)
        write_json(view.run_folder(home, row.id) / "stop.json", {"keep": keep, "time": now})
        rows.change(session, row.id, ["starting", "running"], status="stopping", stopping=now)
        session.refresh(row)
        return view.info(home, session, row)


def resume_run(home: Home, ref: str) -> RunInfo:
    """Put a stopped or failed run back into the queue; it goes on from its newest checkpoint.

    Raises AfinaError `run_not_found`, `run_active`, `nothing_to_resume`.
    """
    with index(home) as session, queue_held(home):
        row = rows.find(session, ref)
        info = view.info(home, session, row)
        if info.status in ACTIVE or info.status == "queued":
            raise _conflict("run_active", say(N_("The run “{run}” is not over yet."), run=row.name), row.id)
        if not info.resumable:
            raise _conflict(
                "nothing_to_resume",
                say(N_("The run “{run}” cannot go on: it has finished, or it has no checkpoint."), run=row.name),
                row.id,
                say(N_("Start a new run with the same settings.")),
            )
        folder = view.run_folder(home, row.id)
        for name in ("stop.json", "process.json"):
            (folder / name).unlink(missing_ok=True)
        if rows.change(
            session,
            row.id,
            ["stopped", "failed", *ACTIVE],
            status="queued",
            queued=time.time(),
            ended=None,
            stopping=None,
        ):
            EventLog(folder).append(Phase("queued"))
        return _refreshed(home, session, row.id)


def delete_run(home: Home, ref: str) -> None:
    """Delete a run and everything in its folder.

    Raises AfinaError `run_not_found`, `run_active`, `has_descendants` when other results were trained from it.
    """
    with index(home) as session, queue_held(home):
        row = rows.find(session, ref)
        children = [other.name for other in rows.all_runs(session) if row.id in other.ancestors]
        if children:
            raise _conflict(
                "has_descendants",
                say(
                    N_("The result of “{run}” is needed by: {runs}."),
                    run=row.name,
                    runs=", ".join(sorted(children)[:5]),
                ),
                row.id,
                say(N_("Delete those runs first.")),
            )
        if view.info(home, session, row).status in ACTIVE or not rows.remove(session, row.id):
            raise _conflict(
                "run_active",
                say(N_("The run “{run}” is not over yet."), run=row.name),
                row.id,
                say(N_("Stop it first.")),
            )
        folder = view.run_folder(home, row.id)
        trash = folder.with_name(f".trash-{folder.name}")
        if folder.exists():
            folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def rebuild(home: Home) -> None:
    """Compare the index with the run folders, which are the truth, and mend it."""
    with index(home.create()) as session, queue_held(home):
        fill(home, session)


def run_events(home: Home, ref: str, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events after byte `offset` of the log (some megabytes at most), and the offset to go on from."""
    return EventLog(view.run_folder(home, _id_of(home, ref))).read(offset)


def run_console(home: Home, ref: str, offset: int = 0) -> tuple[str, int]:
    """Console text after byte `offset`, and the offset to go on from; a negative offset: that many last bytes."""
    return read_console(view.run_folder(home, _id_of(home, ref)), offset)


def _id_of(home: Home, ref: str) -> str:
    if len(ref) <= 100 and not set(ref) & set("/\\") and not ref.startswith(".") and (home.runs / ref).is_dir():
        return ref
    with index(home) as session:
        return rows.find(session, ref).id


def _refreshed(home: Home, session: Session, run_id: str) -> RunInfo:
    """The record after its folder has said something new."""
    fresh = row_of(view.run_folder(home, run_id))
    if fresh is not None:
        rows.change(session, run_id, [fresh.status], digest=fresh.digest, events_offset=fresh.events_offset)
    row = session.get_one(RunRow, run_id)
    session.refresh(row)
    return view.info(home, session, row)


def _conflict(code: str, message: Any, run_id: str, remedy: Any = None) -> AfinaError:
    return AfinaError(Problem(code, message, remedy, "run", run_id), kind="conflict")
