"""Watching runs for many readers at the cost of one.

However many pages follow a run, one task looks at its files, and each stretch of the log is read, translated and
written out once for all readers of a language. Knows nothing of sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson

from afina import actions
from afina.core.errors import AfinaError
from afina.core.events import ACTIVE
from afina.core.paths import Home
from afina.i18n import Translator
from afina.registry.records import RunInfo
from afina.web.language import localise

LOOK = 0.25
"""Seconds between looks at the files of a run that is computing."""
REST = 1.0
"""Seconds between looks at a run that is not."""
STATE = 1.0
"""Seconds between looks at a run's state when its files do not grow."""
MEMORY = 8
"""Stretches kept written out, a run."""

Stretch = tuple[bytes, int]


class Watch:
    """One thing that changes, and those who wait for it to change. `version` counts the changes."""

    def __init__(self) -> None:
        self.version = 0
        self.readers = 0
        self._changed = asyncio.Event()

    def change(self) -> None:
        """Wake everyone who waits."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seen: int) -> int:
        """Return the version as soon as it is another than `seen`."""
        while self.version == seen:
            await self._changed.wait()
        return self.version


class RunWatch(Watch):
    """The event log, the console and the state of one run."""

    def __init__(self, home: Home, info: RunInfo) -> None:
        super().__init__()
        self.home = home
        self.info = info
        self._folder = home.runs / info.id
        self._sizes = (-1, -1)
        self._looked = 0.0
        self._written: dict[tuple[str, int, str], asyncio.Future[Stretch]] = {}

    async def look(self) -> float:
        """Look once; returns how long to wait before the next look. Raises AfinaError when the run is gone."""
        sizes = (_size(self._folder / "events.jsonl"), _size(self._folder / "console.log"))
        moved, self._sizes = sizes != self._sizes, sizes
        now = time.monotonic()
        if moved or now - self._looked >= STATE:
            self._looked = now
            info = await asyncio.to_thread(actions.get_run, self.home, self.info.id)
            if moved or info != self.info:
                self.info = info
                self.change()
        return LOOK if self.info.status in ACTIVE else REST

    async def events(self, offset: int, write: Translator) -> Stretch:
        """The message with the events after `offset` in the reader's language, b"" when there are none, and the
        offset behind them."""
        if offset >= self._sizes[0]:
            return b"", offset
        return await self._once(("events", offset, write.lang), lambda: self._events(offset, write))

    async def console(self, offset: int) -> Stretch:
        """The message with the console text after `offset`, b"" when there is none, and the offset behind it."""
        if offset >= self._sizes[1]:
            return b"", offset
        return await self._once(("console", offset, ""), lambda: self._console(offset))

    def state(self, write: Translator) -> bytes:
        """The message with where the run stands."""
        return orjson.dumps({"run": self.info.in_words(write.write).model_dump(mode="json")})

    async def _once(self, key: tuple[str, int, str], make: Callable[[], Stretch]) -> Stretch:
        """Make a stretch, or wait for the reader who is making the same one."""
        made = self._written.get(key)
        if made is None:
            made = self._written[key] = asyncio.ensure_future(asyncio.to_thread(make))
            while len(self._written) > MEMORY:
                self._written.pop(next(iter(self._written)))
        try:
            message, after = await asyncio.shield(made)
        except AfinaError:
            self._written.pop(key, None)
            raise
        if not message or key[1] < 0:
            self._written.pop(key, None)
        return message, after

    def _events(self, offset: int, write: Translator) -> Stretch:
        events, after = actions.run_events(self.home, self.info.id, offset)
        if not events:
            return b"", after
        return orjson.dumps({"events": localise(events, write), "events_offset": after}), after

    def _console(self, offset: int) -> Stretch:
        text, after = actions.run_console(self.home, self.info.id, offset)
        return (orjson.dumps({"console": text, "console_offset": after}) if text else b""), after


class StripWatch(Watch):
    """The runs in progress and in the queue."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.home = home
        self.runs: list[RunInfo] = []

    async def look(self) -> float:
        """Look once; returns how long to wait before the next look."""
        found = await asyncio.to_thread(actions.list_runs, self.home)
        runs = [run for run in found if run.status in ACTIVE or run.status == "queued"]
        if runs != self.runs or not self.version:
            self.runs = runs
            self.change()
        return 1.0

    def state(self, write: Translator) -> bytes:
        """The message with all of them."""
        return orjson.dumps({"runs": [run.in_words(write.write).model_dump(mode="json") for run in self.runs]})


class Hub:
    """The watches that somebody reads; each ends with its last reader."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._watches: dict[str, Any] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def run(self, info: RunInfo) -> AsyncIterator[RunWatch]:
        """The watch of one run, shared by all its readers."""
        async with self._shared(info.id, lambda: RunWatch(self.home, info)) as watch:
            yield watch

    @contextlib.asynccontextmanager
    async def strip(self) -> AsyncIterator[StripWatch]:
        """The watch of all that is in progress."""
        async with self._shared("", lambda: StripWatch(self.home)) as watch:
            yield watch

    @contextlib.asynccontextmanager
    async def _shared(self, key: str, make: Callable[[], Any]) -> AsyncIterator[Any]:
        if key not in self._watches:
            self._watches[key] = make()
            self._tasks[key] = asyncio.create_task(self._look(key, self._watches[key]))
        watch = self._watches[key]
        watch.readers += 1
        try:
            yield watch
        finally:
            watch.readers -= 1
            if not watch.readers and self._watches.get(key) is watch:
                del self._watches[key]
                self._tasks.pop(key).cancel()

    async def _look(self, key: str, watch: Any) -> None:
        while True:
            try:
                pause = await watch.look()
            except AfinaError:  # the run was deleted: readers see no more changes, the next one is told it is gone
                return
            await asyncio.sleep(pause)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - four times a second, without building objects
    except FileNotFoundError:
        return 0
