"""The event log of a run: `events.jsonl`, one JSON object a line, numbered and stamped.

One process writes at a time (the worker; before it starts and after it has died, the supervisor). Anyone may read, at
any moment, from a byte offset: only whole lines are ever handed out, so an offset stays valid for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from afina.core.events import Event

CHUNK = 4 * 1024 * 1024
MOST = 2**62
"""The largest place a file may be read at; systems refuse larger ones."""


class EventLog:
    """`events.jsonl` inside a run folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.jsonl"
        self._next: int | None = None

    def append(self, event: Event) -> dict[str, Any]:
        """Number, stamp and store `event`; returns the object as written. Raises OSError (disk full, no permission).

        The line goes out in one write and is on its way to disk when this returns; a line that a killed writer left
        half done is dropped first.
        """
        if self._next is None:
            self._next = self._mend()
        line = {"seq": self._next, "time": round(time.time(), 3), **event.as_json()}
        encoded = orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY, default=str) + b"\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        try:
            written = os.write(handle, encoded)
            if written < len(encoded):
                self._next = None
                os.write(handle, encoded[written:])
        finally:
            os.close(handle)
        self._next = line["seq"] + 1
        return line

    def read(self, offset: int = 0, limit: int = CHUNK) -> tuple[list[dict[str, Any]], int]:
        """Events of the whole lines in the `limit` bytes after `offset`, and the offset to go on from.

        An offset beyond the end reads nothing. A single line longer than `limit` is read whole.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(min(max(0, offset), MOST))
                data = file.read(limit)
                end = data.rfind(b"\n") + 1
                if not end and len(data) == limit:
                    data += file.readline()
                    end = len(data) if data.endswith(b"\n") else 0
        except FileNotFoundError:
            return [], 0
        return [event for line in data[:end].splitlines() if (event := _parse(line))], max(0, offset) + end

    def all(self) -> Iterator[dict[str, Any]]:
        """Every event from the first to the last."""
        offset = 0
        while True:
            events, after = self.read(offset)
            yield from events
            if after == offset:
                return
            offset = after

    def size(self) -> int:
        """Bytes written so far, 0 when there is no log."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _mend(self) -> int:
        """Cut a half-written last line off and return the number of the next event."""
        if not self.path.exists():
            return 0
        with self.path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            start = max(0, end - CHUNK)
            file.seek(start)
            tail = file.read()
            whole = tail.rfind(b"\n") + 1
            if whole < len(tail):
                file.truncate(start + whole)
        for line in reversed(tail[:whole].splitlines()):
            event = _parse(line)
            if event is not None:
                return int(event["seq"]) + 1
        return 0


def _parse(line: bytes) -> dict[str, Any] | None:
    """One event, or None for a line that a crash of the machine left unreadable."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and "seq" in event and "type" in event else None


def read_console(folder: Path, offset: int = 0, limit: int = 256 * 1024) -> tuple[str, int]:
    """Text of `console.log` after `offset` and the offset to go on from; a negative offset means that many last bytes.

    Cut at whole lines where there are any (from the end only when the file was longer than `limit`), so that no
    character is split.
    """
    try:
        with (folder / "console.log").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            file.seek(start)
            data = file.read(limit)
    except FileNotFoundError:
        return "", 0
    if offset < 0 and start > 0:
        skipped = data.find(b"\n") + 1
        start, data = start + skipped, data[skipped:]
    return _whole(data, start, limit)


def _whole(data: bytes, start: int, limit: int) -> tuple[str, int]:
    """Leave an unfinished line, or at least an unfinished character, for the next reading."""
    end = data.rfind(b"\n") + 1
    whole = end if len(data) >= limit and end else len(data) - _unfinished(data)
    data = data[:whole]
    return data.decode("utf-8", "replace"), start + len(data)


def _unfinished(data: bytes) -> int:
    """How many bytes at the end are the beginning of a UTF-8 character that is not all there yet."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if length > back else 0
    return 0
