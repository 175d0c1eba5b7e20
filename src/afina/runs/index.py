"""The index of a home, opened; when it is new it is filled from the run folders, which are the truth."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.orm import Session

from afina.core.errors import AfinaError, Problem
from afina.core.files import read_json
from afina.core.locks import FileLock
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.registry import database
from afina.registry.tables import RunRow
from afina.runs.digest import Digest
from afina.runs.launch import process_of
from afina.runs.log import EventLog

LEFTOVER_AGE = 24 * 3600


def queue_lock(home: Home) -> FileLock:
    """Held by whoever looks after the queue, and by whoever puts runs into it or takes them out, for a moment each."""
    return FileLock(home.state / "supervisor.lock")


@contextmanager
def queue_held(home: Home) -> Iterator[None]:
    """Change folder and row of a run together, out of the sight of every supervisor."""
    lock = queue_lock(home)
    if not lock.acquire(timeout=30):
        raise AfinaError(
            Problem(
                "queue_busy",
                say(N_("The queue is busy with something else.")),
                say(N_("Try again in a moment.")),
            ),
            kind="conflict",
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def index(home: Home) -> Iterator[Session]:
    """A session on the index of `home`, closed at the end; what was not committed is undone."""
    with database.open_session(home, fill) as session:
        yield session


def fill(home: Home, session: Session) -> None:
    """Put every run folder that has no row into the index, and take rows whose folder is gone out of it.

    To be called with the queue held, or before anyone else knows the index.
    """
    _sweep(home)
    folders = {path.name: path for path in home.runs.iterdir() if path.is_dir() and not path.name.startswith(".")}
    for row in session.query(RunRow).all():
        if row.id not in folders:
            session.delete(row)
    for name, folder in sorted(folders.items()):
        if session.get(RunRow, name) is None and (made := row_of(folder)) is not None:
            session.add(made)
    session.commit()


def row_of(folder: Path) -> RunRow | None:
    """The row that a run folder stands for; None when the folder is not a run (no readable manifest or spec)."""
    try:
        spec, manifest = read_json(folder / "spec.json"), read_json(folder / "manifest.json")
        model, parts = manifest["model"], manifest["datasets"]
        name, created = str(manifest["name"]), float(manifest["created"])
        dataset = [{"name": part["name"], "weight": part["weight"]} for part in parts]
        source, ancestors = str(model["id"]), list(model["ancestors"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    digest = Digest()
    offset = catch_up(folder, digest, 0)
    return RunRow(
        id=folder.name,
        name=name,
        status=_status(folder, digest),
        created=created,
        queued=digest.queued or created,
        started=digest.started,
        ended=digest.ended,
        model=source,
        method=str(spec.get("method", "lora")),
        dataset=dataset,
        spec=spec,
        ancestors=ancestors,
        digest=digest.as_json(),
        events_offset=offset,
    )


def catch_up(folder: Path, digest: Digest, offset: int) -> int:
    """Fold the events after byte `offset` into `digest`; returns the new offset."""
    log = EventLog(folder)
    while True:
        events, after = log.read(offset)
        for event in events:
            digest.fold(event)
        if after <= offset:
            return offset
        offset = after


def _status(folder: Path, digest: Digest) -> str:
    """What the folder says of the run's status; one that was computing counts as running until it is looked at."""
    if digest.status:
        return digest.status
    if digest.phase in (None, "queued") and process_of(folder) is None:
        return "queued"
    return "stopping" if (folder / "stop.json").exists() else "running"


def _sweep(home: Home) -> None:
    """Remove what was being made or deleted when someone was killed a day ago or more."""
    for folder in [*home.runs.glob(".new-*"), *home.runs.glob(".trash-*")]:
        with suppress(OSError):
            if folder.name.startswith(".trash-") or time.time() - folder.stat().st_mtime > LEFTOVER_AGE:
                shutil.rmtree(folder, ignore_errors=True)
