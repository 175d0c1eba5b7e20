"""Who looks on while files are read: how far a look is, and whether anyone still waits for it.

The readers say how many bytes they have taken (`seen`); those who wait ask `how_far`, are told (`telling`), or end the
reading (`until`). Knows nothing of what is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say

Tell = Callable[[int, int], None]
"""Called with the bytes read so far and those of the whole."""
PATIENCE = 0.2
"""Seconds between two questions whether a wait is still wanted."""


@dataclass
class _Look:
    total: int
    done: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)
    wanted: int = 0


_guard = threading.Lock()
_looks: dict[Path, _Look] = {}
_mine: ContextVar[_Look | None] = ContextVar("look", default=None)
_tell: ContextVar[Tell | None] = ContextVar("tell", default=None)
_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


@contextmanager
def until(stop: threading.Event) -> Iterator[None]:
    """Whatever is read within ends with AfinaError `stopped` soon after `stop` is set."""
    before = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(before)


@contextmanager
def telling(tell: Tell) -> Iterator[None]:
    """Looks within say how far they are."""
    before = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(before)


@contextmanager
def looking(path: Path, total: int) -> Iterator[None]:
    """A look through `path`, of `total` bytes. One at a time: who comes second waits, and may find the first's result."""
    with _guard:
        look = _looks.setdefault(path, _Look(total))
        look.wanted += 1
    try:
        while not look.turn.acquire(timeout=PATIENCE):
            seen(0)
        look.done, look.total = 0, total
        before = _mine.set(look)
        try:
            yield
        finally:
            _mine.reset(before)
            look.turn.release()
    finally:
        with _guard:
            look.wanted -= 1
            if not look.wanted:
                del _looks[path]


def seen(count: int) -> None:
    """Say that so many bytes more have been read. Raises AfinaError `stopped` when nobody waits for them any more."""
    stop = _stop.get()
    if stop is not None and stop.is_set():
        raise AfinaError(
            Problem("stopped", say(N_("The server is ending.")), say(N_("Start it again, then repeat this."))), "failed"
        )
    look = _mine.get()
    if look is not None and count:
        look.done = min(look.total, look.done + count)
        if (tell := _tell.get()) is not None:
            tell(look.done, look.total)


def how_far(path: Path) -> tuple[int, int] | None:
    """The bytes read and the bytes there are of a look that is under way; None when none is."""
    look = _looks.get(path)
    return None if look is None else (look.done, look.total)


class Meter:
    """Says how far a file has been read, whatever unpacks it on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0

    def look(self) -> None:
        """Say what has been read since the last time."""
        at = self._file.tell()
        seen(max(0, at - self._at))
        self._at = at
