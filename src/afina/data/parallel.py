"""A large file of JSON lines looked through by several processes: blocks of whole lines out, stretches back, in order.

Bounded: a few blocks are under way at a time. Everything found is the same as when one process reads on its own.
"""

from __future__ import annotations

import io
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import IO, Any

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.data.faults import Unreadable
from afina.data.lengths import Lengths
from afina.data.readers import Source
from afina.data.report import Gatherer
from afina.data.scan import Stretch
from afina.data.tasks import FAR, Block, Task, read_stretch, send_block, send_task
from afina.data.textfile import MAX_ROW

LARGE = 16 * 1024 * 1024
"""From this size on it is worth starting processes."""
BLOCK = 1024 * 1024
PIECE = 256 * 1024
COMMAND = [sys.executable, "-m", "afina.data.looker"]
PIPES: dict[str, Any] = {
    "stdin": subprocess.PIPE,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.DEVNULL,
    "env": {**os.environ, "TOKENIZERS_PARALLELISM": "false"},  # each has one processor
}


def processors() -> int:
    """How many processes may look at a file at once (`AFINA_THREADS` sets a limit)."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("AFINA_THREADS", "")
    return max(1, min(8, usable, int(asked) if asked.isdecimal() and int(asked) else usable))


def suits(source: Source, lengths: Lengths | None = None) -> bool:
    """Whether the file can be divided, is large enough, and other processes can count as `lengths` does."""
    file = source.file
    if file is None or source.container != "jsonl" or source.format is None or source.fault is not None:
        return False
    if lengths is not None and lengths.tokenizer.origin is None:
        return False
    size = source.path.stat().st_size * (8 if file.compression else 1)
    return size >= LARGE and file.encoding in ("utf-8", "utf-8-sig")


def stretches(source: Source, lengths: Lengths | None, workers: int, compare: Callable[[], bool]) -> Iterator[Stretch]:
    """The file's stretches in order, numbered through. `compare`: whether sketches are still wanted.

    Raises AfinaError `check_failed` when a process dies, Unreadable where the file itself cannot be read further.
    """
    file = source.file
    if file is None or source.format is None:
        return
    task = Task(source.format, source.columns, source.mapping, file.encoding, lengths)
    rows = lines = done = 0
    with _Crew(task, workers) as crew, file.open_bytes() as raw:
        waiting: deque[tuple[Future[Stretch], bytes]] = deque()
        blocks = _Blocks(raw)
        while True:
            while len(waiting) < 2 * workers and (block := blocks.following()):
                waiting.append((crew.look(Block(block, blocks.count == 1, compare())), block))
            if not waiting:
                break
            under_way, block = waiting.popleft()
            stretch = _placed(under_way.result(), block, rows, lines, first=not done)
            rows, lines, done = stretch.end, lines + stretch.lines_read, done + len(block)
            yield stretch
        if blocks.broken is not None:
            raise blocks.broken


class _Crew:
    """Processes that look through blocks, each fed by a thread."""

    def __init__(self, task: Task, count: int) -> None:
        self._task = task
        self._all = [subprocess.Popen(COMMAND, **PIPES) for _ in range(count)]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count)

    def __enter__(self) -> _Crew:
        for process in self._all:
            self._threads.submit(self._instruct, process)
        return self

    def _instruct(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(OSError):  # it may be dead already, which the first block will find out
            send_task(_pipe(process.stdin), self._task)
        self._idle.put(process)

    def look(self, block: Block) -> Future[Stretch]:
        """Have the block looked through. The result raises AfinaError `check_failed` when the process dies."""
        return self._threads.submit(self._ask, block)

    def _ask(self, block: Block) -> Stretch:
        process = self._idle.get()
        try:
            send_block(_pipe(process.stdin), block)
            return read_stretch(_pipe(process.stdout))
        except (OSError, EOFError, ValueError):
            raise AfinaError(_died(), "failed") from None
        finally:
            self._idle.put(process)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in self._all:
                process.kill()  # whatever it is at, nobody waits for it any more
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._all:
            with process:
                try:
                    if process.stdin is not None:
                        process.stdin.close()
                except OSError:
                    process.kill()


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None  # noqa: S101  PIPES asks for it
    return end


def _died() -> Problem:
    return Problem(
        "check_failed",
        say(N_("A process that was looking through the file has ended unexpectedly.")),
        say(N_("Close other programs, for memory may have run out, and try again.")),
    )


class _Blocks:
    """Hands out the blocks one by one. Where the file cannot be read further they end, and `broken` says why."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self._blocks = _blocks(raw)
        self.broken: Unreadable | None = None
        self.count = 0

    def following(self) -> bytes:
        """The next block, b"" at the end."""
        try:
            block = next(self._blocks, b"")
        except Unreadable as end:
            self.broken = end
            return b""
        self.count += 1
        return block


def _blocks(raw: io.BufferedReader) -> Iterator[bytes]:
    """Pieces of whole lines of about BLOCK bytes; of a line that is too long for a row, its beginning only."""
    whole: list[bytes] = []
    line: list[bytes] = []  # the last one, which is not whole yet
    size = held = 0
    while True:
        try:
            piece = raw.read1(PIECE)  # in pieces, so that little is lost where a packed file is damaged
        except Unreadable:
            if whole:
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


def _placed(stretch: Stretch, block: bytes, rows: int, lines: int, first: bool) -> Stretch:
    """The stretch with its rows and lines counted from the beginning of the file, behind so many rows and lines."""
    stretch.lines_read = block.count(b"\n") + (not block.endswith(b"\n"))
    if b"\r" in block:
        stretch.lines_read += block.count(b"\r") - block.count(b"\r\n")
    if first:
        return stretch
    found = Gatherer()
    found.merge(stretch.found, rows - FAR, lines - FAR)
    stretch.found = found
    stretch.end += rows - FAR
    stretch.rows += rows - FAR
    stretch.lines += lines - FAR
    stretch.sketches.rows[:] += rows - FAR
    return stretch
