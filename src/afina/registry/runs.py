"""Rows of runs: adding, finding, and changing a status only from the status it is believed to have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

from sqlalchemy import CursorResult, delete, func, or_, select, update
from sqlalchemy.orm import Session

from afina.core.errors import AfinaError, Problem
from afina.core.events import ACTIVE
from afina.core.messages import N_, say
from afina.registry.tables import RunRow


def all_runs(session: Session) -> Sequence[RunRow]:
    """Every run, newest first."""
    return session.scalars(select(RunRow).order_by(RunRow.created.desc(), RunRow.id.desc())).all()


def with_status(session: Session, statuses: Collection[str]) -> Sequence[RunRow]:
    """Runs in one of these statuses, in the order of the queue."""
    return session.scalars(select(RunRow).where(RunRow.status.in_(statuses)).order_by(RunRow.queued, RunRow.id)).all()


def next_queued(session: Session) -> RunRow | None:
    """The run whose turn is next."""
    return session.scalars(
        select(RunRow).where(RunRow.status == "queued").order_by(RunRow.queued, RunRow.id).limit(1)
    ).first()


def position(session: Session, row: RunRow) -> int | None:
    """The place in the queue, 1 for the next one; None when the run does not wait."""
    if row.status != "queued":
        return None
    earlier = or_(RunRow.queued < row.queued, (RunRow.queued == row.queued) & (RunRow.id < row.id))
    return 1 + (session.scalar(select(func.count()).select_from(RunRow).where(RunRow.status == "queued", earlier)) or 0)


def change(session: Session, run_id: str, expected: Collection[str], **values: Any) -> bool:
    """Change a run if its status is one of `expected`; False when someone else was quicker. Commits."""
    result = session.execute(update(RunRow).where(RunRow.id == run_id, RunRow.status.in_(expected)).values(**values))
    session.commit()
    return cast("CursorResult[Any]", result).rowcount == 1


def remove(session: Session, run_id: str) -> bool:
    """Take a run that is not active out of the index; False when it is active or not there. Commits."""
    result = session.execute(delete(RunRow).where(RunRow.id == run_id, RunRow.status.not_in(ACTIVE)))
    session.commit()
    return cast("CursorResult[Any]", result).rowcount == 1


def find(session: Session, ref: str) -> RunRow:
    """A run by id, by name (the newest of that name), or by an unmistakable beginning of its id.

    Raises AfinaError `run_not_found`, `run_ambiguous`.
    """
    row = session.get(RunRow, ref)
    if row is not None:
        return row
    named = session.scalars(select(RunRow).where(RunRow.name == ref).order_by(RunRow.created.desc())).first()
    if named is not None:
        return named
    found = (
        session.scalars(select(RunRow).where(RunRow.id.startswith(ref, autoescape=True)).limit(2)).all() if ref else []
    )
    if len(found) == 1:
        return found[0]
    if found:
        problem = Problem(
            "run_ambiguous",
            say(N_("Several runs begin with “{run}”."), run=ref),
            say(N_("Write more of the run's id, or its name.")),
            "run",
            ref,
        )
    else:
        problem = Problem(
            "run_not_found",
            say(N_("There is no run “{run}”."), run=ref),
            say(N_("The list of runs shows their names and ids.")),
            "run",
            ref,
        )
    raise AfinaError(problem, kind="not_found")


def names(session: Session) -> set[str]:
    """The names in use, in lower case."""
    return {name.lower() for name in session.scalars(select(RunRow.name))}


def last_use(session: Session) -> dict[str, str]:
    """For each dataset the newest run that used it: dataset's name → run id."""
    used: dict[str, str] = {}
    for run_id, dataset in session.execute(select(RunRow.id, RunRow.dataset).order_by(RunRow.created)):
        used.update({part["name"]: run_id for part in dataset})
    return used
