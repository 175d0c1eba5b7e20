"""A large file of JSON lines looked through by several processes: blocks of whole lines out, stretches back, in order.

Bounded: a few blocks are under way at a time. Everything found is the same as when one process reads on its own.
"""

from __future__ import annotations

import io
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.data.examples import Format
from afina.data.faults import Unreadable
from afina.data.formats import Columns, Mapping, examples_of
from afina.data.json_rows import json_lines
from afina.data.lengths import Lengths
from afina.data.readers import Source
from afina.data.report import Gatherer
from afina.data.scan import Stretch, look
from afina.data.textfile import MAX_ROW

LARGE = 16 * 1024 * 1024
"""From this size on it is worth starting processes."""
BLOCK = 1024 * 1024
PIECE = 256 * 1024
FAR = 1_000_000
"""Later blocks count their rows from here until it is known where they stand: no row of theirs is taken for a first."""
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and those of the whole file; not for compressed files."""


@dataclass(frozen=True)
class Task:
    """What every process has to know."""

    form: Format
    columns: Columns | None
    mapping: Mapping | None
    encoding: str
    lengths: Lengths | None
    compare: bool


def processors() -> int:
    """How many processes may look at a file at once (`AFINA_THREADS` sets a limit)."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("AFINA_THREADS", "")
    return max(1, min(8, usable, int(asked) if asked.isdecimal() and int(asked) else usable))


def suits(source: Source) -> bool:
    """Whether the file can be divided, and is large enough."""
    file = source.file
    if file is None or source.container != "jsonl" or source.format is None or source.fault is not None:
        return False
    size = source.path.stat().st_size * (8 if file.compression else 1)
    return size >= LARGE and file.encoding in ("utf-8", "utf-8-sig")


def stretches(
    source: Source, lengths: Lengths | None, workers: int, compare: Callable[[], bool], progress: Progress | None = None
) -> Iterator[Stretch]:
    """The file's stretches in order, numbered through. `compare`: whether sketches are still wanted.

    Raises AfinaError `check_failed` when a process dies, Unreadable where the file itself cannot be read further.
    """
    file = source.file
    if file is None or source.format is None:
        return
    task = Task(source.format, source.columns, source.mapping, file.encoding, lengths, True)
    total = source.path.stat().st_size
    rows = lines = done = 0
    waiting: deque[tuple[Future[Stretch], int]] = deque()
    with (
        ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(task,)) as pool,
        file.open_bytes() as raw,
    ):
        blocks, broken, first, begun = _blocks(raw), None, True, False
        try:
            while True:
                while len(waiting) < 2 * workers and broken is None:
                    try:
                        block = next(blocks, None)
                    except Unreadable as end:
                        broken = end
                        break
                    if block is None:
                        break
                    waiting.append((pool.submit(_work, block, first, compare()), len(block)))
                    first = False
                if not waiting:
                    break
                under_way, size = waiting.popleft()
                stretch = under_way.result()
                stretch = _placed(stretch, rows, lines) if begun else stretch
                begun = True
                rows, lines, done = stretch.end, lines + stretch.lines_read, done + size
                yield stretch
                if progress is not None and file.compression is None:
                    progress(min(total, done), total)
        except BrokenProcessPool:
            raise AfinaError(_died(), "failed") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if broken is not None:
        raise broken


def _died() -> Problem:
    return Problem(
        "check_failed",
        say(N_("A process that was looking through the file has ended unexpectedly.")),
        say(N_("Close other programs, for memory may have run out, and try again.")),
    )


def _blocks(raw: io.BufferedReader) -> Iterator[bytes]:
    """Pieces of whole lines of about BLOCK bytes; of a line that is too long for a row, its beginning only."""
    whole: list[bytes] = []
    line: list[bytes] = []  # the last one, which is not whole yet
    size = held = 0
    while True:
        try:
            piece = raw.read1(PIECE)  # in pieces, so that little is lost where a packed file is damaged
        except Unreadable:
            yield b"".join(whole)
            raise
        if not piece:
            break
        cut = piece.rfind(b"\n") + 1
        if not cut:
            if held <= 4 * MAX_ROW:  # more than this no row may have; what follows is dropped up to the line's end
                line.append(piece)
                held += len(piece)
            continue
        whole += [*line, piece[piece.find(b"\n") if held > 4 * MAX_ROW else 0 : cut]]
        size += held + cut
        line, held = [piece[cut:]], len(piece) - cut
        if size >= BLOCK:
            yield b"".join(whole)
            whole, size = [], 0
    if rest := b"".join(whole + line):
        yield rest


_task: list[Task] = []


def _begin(task: Task) -> None:
    """Get a process ready: what it has to know, and no reaction to Ctrl-C, which its parent handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _task[:] = [task]


def _work(block: bytes, first: bool, compare: bool) -> Stretch:
    """Look through one block. Its rows and lines count from FAR unless it is the first."""
    task = _task[0]
    encoding = task.encoding if first else "utf-8"
    start = 0 if first else FAR
    with io.TextIOWrapper(io.BytesIO(block), encoding, "afina-mark", newline=None) as file:
        records = json_lines(file, start, start)
        stretch = look(examples_of(records, task.form, task.columns, task.mapping), task.lengths, compare)
    stretch.end = max(stretch.end, start)
    stretch.lines_read = block.count(b"\n") + (not block.endswith(b"\n"))
    if b"\r" in block:
        stretch.lines_read += block.count(b"\r") - block.count(b"\r\n")
    return stretch


def _placed(stretch: Stretch, rows: int, lines: int) -> Stretch:
    """The stretch with its rows and lines counted from the beginning of the file."""
    found = Gatherer()
    found.merge(stretch.found, rows - FAR, lines - FAR)
    stretch.found = found
    stretch.end += rows - FAR
    stretch.rows += rows - FAR
    stretch.lines += lines - FAR
    stretch.sketches.rows[:] += rows - FAR
    return stretch
