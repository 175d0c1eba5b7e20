"""A run as people see it: its row, brought up to date by what its worker has written since."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

from sqlalchemy.orm import Session

from afina.core.events import ACTIVE, Status
from afina.core.messages import Message
from afina.core.paths import Home
from afina.registry import runs as rows
from afina.registry.records import DatasetUse, Explanation, RunInfo
from afina.registry.tables import RunRow
from afina.runs.digest import Digest
from afina.runs.index import catch_up

RESUMABLE = frozenset({"stopped", "failed"})


def run_folder(home: Home, run_id: str) -> Path:
    """Where a run keeps everything."""
    return home.runs / run_id


def standing(home: Home, row: RunRow) -> tuple[str, Digest]:
    """Status and digest of a run as its log stands now, which may be ahead of the row. Writes nothing."""
    digest = Digest.load(row.digest)
    if row.status in ACTIVE or row.status == "queued":
        catch_up(run_folder(home, row.id), digest, row.events_offset)
    return (digest.status or row.status) if row.status in ACTIVE else row.status, digest


def info(home: Home, session: Session, row: RunRow) -> RunInfo:
    """The record of a run, as its log stands now. Writes nothing."""
    folder = run_folder(home, row.id)
    status, digest = standing(home, row)
    seconds = digest.seconds
    if status in ACTIVE and digest.stretch is not None:
        seconds = digest.spent + max(0.0, time.time() - digest.stretch)
    return RunInfo(
        id=row.id,
        name=row.name,
        status=cast("Status", status),
        created=row.created,
        started=digest.started or row.started,
        ended=(digest.ended or row.ended) if status not in ACTIVE else None,
        model=row.model,
        dataset=[DatasetUse(**part) for part in row.dataset],
        method=row.method,
        spec=row.spec,
        step=digest.step,
        total_steps=digest.total_steps,
        epoch=digest.epoch,
        train_loss=digest.train_loss,
        validation_loss=digest.validation_loss,
        best_step=digest.best_step,
        seconds=seconds,
        seconds_left=digest.seconds_left if status in ACTIVE else None,
        tokens_per_second=digest.tokens_per_second,
        queue_position=rows.position(session, row),
        output=str(folder / digest.output) if digest.output else None,
        error=explanation(digest.terminal) if status == "failed" else None,
        phase=digest.phase if status in ACTIVE or status == "queued" else None,
        sparkline=digest.sparkline,
        resumable=status in RESUMABLE and can_resume(folder),
    )


def explanation(event: dict[str, Any] | None) -> Explanation | None:
    """What a `failed` event says, translatable."""
    if not event or event.get("type") != "failed":
        return None
    message = message_of(event.get("message")) or Message("{code}", {"code": event.get("code")})
    return Explanation.of(str(event.get("code")), message, message_of(event.get("remedy")))


def message_of(plain: Any) -> Message | None:
    """A message read back from its JSON."""
    if not isinstance(plain, dict) or "template" not in plain:
        return None
    return Message(str(plain["template"]), dict(plain.get("values") or {}))


def can_resume(folder: Path) -> bool:
    """Whether a complete checkpoint is there to go on from (the manifest is the last file written into one)."""
    return next((folder / "checkpoints").glob("step-*/manifest.json"), None) is not None
