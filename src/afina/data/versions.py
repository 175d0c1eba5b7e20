"""The history of a dataset: what its file held, and what each step since has made of it. One small JSON file a dataset.

A step names a version by its content; going back only says which step is the current one. The person's file is read, never
written. Kept in `datasets.store/history`, for it cannot be made again from anything else.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from afina.core.errors import AfinaError, Problem
from afina.core.files import read_json, write_json
from afina.core.locks import FileLock
from afina.core.messages import N_, say
from afina.core.paths import Home, confined
from afina.data import blocks, store, watch
from afina.data.cache import content
from afina.data.mapping import read_as_remembered, remembered

PATIENCE = 300.0
"""Seconds to wait for another change; the first look at a very large file takes that long."""

What = Literal["file", "fix", "edit", "add", "remove"]
FRESH_SECONDS = 24 * 3600
"""Versions younger than this are never tidied away: someone may be about to refer to them."""


@dataclass
class Step:
    """One state of a dataset and what led to it. `parent` is the step it was made from (None: from the file).

    code, way: of a remedy; removed, changed, added, left_out: counts; file: size, and hash of the bytes, of what was read.
    """

    number: int
    what: What
    sha256: str
    rows: int
    at: float
    parent: int | None = None
    code: str | None = None
    way: str | None = None
    removed: int = 0
    changed: int = 0
    added: int = 0
    left_out: int = 0
    format: str | None = None
    file: str | None = None


@dataclass
class History:
    """The steps of a dataset and which one is current; `changed`: the file holds something else since it was read."""

    name: str
    current: int = 0
    steps: list[Step] = field(default_factory=list)
    changed: bool = False

    @property
    def step(self) -> Step:
        """The current step."""
        return self.steps[self.current]

    @property
    def edited(self) -> bool:
        """Whether something other than the file itself is current."""
        return bool(self.steps) and self.step.what != "file"


def peek(home: Home, name: str) -> History | None:
    """What is written down about a dataset, without looking at its file; None when nothing is."""
    try:
        kept = read_json(_place(home, name))
        steps = [Step(**step) for step in kept["steps"]]
        found = History(name, int(kept["current"]), steps)
        return found if 0 <= found.current < len(steps) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def current(home: Home, file: Path) -> Path:
    """What training reads: the version that is current, or the file itself while nothing was made of it."""
    found = peek(home, file.name)
    if found is None or not found.edited:
        return file
    path = blocks.place(home, found.step.sha256)
    return path if path.is_file() else file


def file_changed(home: Home, file: Path) -> bool:
    """Whether the file holds something else since that was read of which a version has been made."""
    found = peek(home, file.name)
    return found is not None and found.edited and _read_from(found).file != _mark(home, file)


def history(home: Home, file: Path) -> History:
    """The history of a file in the datasets folder, begun when there is none.

    A file that has changed is read again; when something was made of it before, it is only noted as changed.
    """
    with _changing(home):
        found = peek(home, file.name)
        mark = _mark(home, file)
        if found is not None and not all(blocks.place(home, step.sha256).is_file() for step in found.steps[-1:]):
            found = None
        if found is None or (found.step.file != mark and not found.edited):
            found = _begin(home, file, mark, found)
        found.changed = _read_from(found).file != mark
        return found


def start_again(home: Home, file: Path) -> History:
    """Make what the file holds now the current version; what was made before stays in the history."""
    with _changing(home):
        return _begin(home, file, _mark(home, file), peek(home, file.name))


def append(home: Home, found: History, step: Step) -> History:
    """Add a step that was made from the current one. Raises AfinaError `version_changed` when another was quicker."""
    with _changing(home):
        now = peek(home, found.name)
        if now is None or now.step.sha256 != found.step.sha256:
            raise changed_meanwhile(found.name)
        step.number, step.parent = len(now.steps), now.current
        now.steps.append(step)
        now.current = step.number
        _save(home, now)
        now.changed = found.changed
        return now


def go_to(home: Home, found: History, number: int) -> History:
    """Make another step the current one. Raises AfinaError `step_not_found`."""
    with _changing(home):
        now = peek(home, found.name) or found
        if not 0 <= number < len(now.steps):
            message = say(N_("“{name}” has no version {number}."), name=found.name, number=number)
            remedy = say(N_("The history lists the versions there are."))
            raise AfinaError(Problem("step_not_found", message, remedy, "number", number), "not_found")
        store.version_path(home, now.steps[number].sha256)
        now.current = number
        _save(home, now)
        now.changed = found.changed
        return now


def forget(home: Home, name: str) -> None:
    """Drop the history of a dataset whose file is gone."""
    with _changing(home):
        _place(home, name).unlink(missing_ok=True)


def tidy(home: Home, now: float | None = None) -> int:
    """Remove versions that neither a history nor a run refers to; returns how many. Nothing when a run cannot be read."""
    used = _used(home)
    if used is None:
        return 0
    removed = 0
    for path in home.store.glob("*.jsonl.gz"):
        with suppress(FileNotFoundError):
            old = (now or time.time()) - path.stat().st_mtime > FRESH_SECONDS
            if old and blocks.sha_of(path) not in used:
                path.unlink()
                removed += 1
    return removed


def _used(home: Home) -> set[str] | None:
    used: set[str] = set()
    try:
        for place in (home.store / "history").glob("*.json"):
            used.update(step["sha256"] for step in read_json(place)["steps"])
        for manifest in home.runs.glob("*/manifest.json"):
            told = read_json(manifest)
            parts = [*told["datasets"], *([told["validation"]] if told.get("validation") else [])]
            used.update(part["sha256"] for part in parts)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return used


def changed_meanwhile(name: str) -> AfinaError:
    """Someone else has made another version current."""
    message = say(N_("“{name}” was changed meanwhile."), name=name)
    return AfinaError(
        Problem("version_changed", message, say(N_("Load it again, then repeat the change.")), "version"), "conflict"
    )


def _begin(home: Home, file: Path, mark: str, before: History | None) -> History:
    """Read the file into the store as a step of its own; the only one, unless something was made of an earlier one."""
    source = read_as_remembered(home, file)
    sha256, rows = store.keep(home, source.entries())
    kept = before.steps if before is not None and any(step.what != "file" for step in before.steps) else []
    step = Step(len(kept), "file", sha256, rows, time.time(), format=source.format, file=mark)
    made = History(file.name, step.number, [*kept, step])
    _save(home, made)
    return made


def _mark(home: Home, file: Path) -> str:
    """What is read of a file: its bytes, and what its columns mean where somebody said so."""
    mapping = remembered(home, file)
    return content(file) if mapping is None else f"{content(file)} {mapping}"


def _read_from(found: History) -> Step:
    """The step in which the file was read that the current one comes from."""
    step = found.step
    while step.parent is not None:
        step = found.steps[step.parent]
    return step


def _save(home: Home, found: History) -> None:
    plain: dict[str, Any] = {"current": found.current, "steps": [asdict(step) for step in found.steps]}
    write_json(_place(home, found.name), plain)


def _place(home: Home, name: str) -> Path:
    return confined(home.store / "history", f"{name}.json") if len(name.encode()) < 195 else _long(home, name)


def _long(home: Home, name: str) -> Path:
    return home.store / "history" / f"{hashlib.sha256(name.encode()).hexdigest()}.json"


@contextmanager
def _changing(home: Home) -> Iterator[None]:
    """One change at a time. Raises AfinaError `dataset_busy` when another takes too long."""
    lock = FileLock(home.state / "datasets.lock")
    until = time.monotonic() + PATIENCE
    while not (held := lock.acquire(watch.PATIENCE)) and time.monotonic() < until:
        watch.seen(0)
    if not held:
        message = say(N_("Another change of a dataset is under way."))
        raise AfinaError(Problem("dataset_busy", message, say(N_("Try again in a moment."))), "conflict")
    try:
        yield
    finally:
        lock.release()
