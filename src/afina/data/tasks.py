"""What `parallel.py` and the processes it starts (`looker.py`) tell each other, and how: a line of JSON, then bytes.

Nothing is unpickled: what comes over a pipe can only be numbers, texts and arrays.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from afina.data.examples import Format
from afina.data.formats import Columns, Mapping
from afina.data.lengths import Lengths, Sums
from afina.data.report import Gatherer
from afina.data.scan import Stretch
from afina.data.similar import BANDS, SLOTS, Sketches

FAR = 1_000_000
"""Later blocks count their rows from here until it is known where they stand: no row of theirs is taken for a first."""
ARRAYS = (np.int64, np.int64, np.uint64, np.uint64, np.int64, np.uint8, np.uint32)
"""The kinds of a stretch's arrays: rows, lines, keys, answers; of its sketches rows, bytes, bands."""


@dataclass(frozen=True)
class Task:
    """What a process has to know of the file."""

    form: Format
    columns: Columns | None
    mapping: Mapping | None
    encoding: str
    lengths: Lengths | None


@dataclass(frozen=True)
class Block:
    """Whole lines of the file; whether they are its first, and whether rows are still compared with each other."""

    content: bytes | bytearray
    first: bool
    compare: bool


def send_task(file: IO[bytes], task: Task) -> None:
    """Write a task. Raises OSError."""
    plain = {
        **vars(task),
        "mapping": task.mapping and asdict(task.mapping),
        "lengths": task.lengths and task.lengths.told,
    }
    _send(file, plain)


def read_task(file: IO[bytes]) -> Task:
    """Read a task; its tokenizer is loaded anew. Raises EOFError, ValueError, AfinaError."""
    plain, _ = _read(file)
    if plain["columns"] is not None:
        plain["columns"] = tuple(plain["columns"])
    if plain["mapping"] is not None:
        plain["mapping"] = Mapping(**plain["mapping"])
    if (told := plain["lengths"]) is not None:
        from afina.data.template import ChatTokenizer  # only where tokens are counted

        folder, template, now = told.pop("origin")
        tokenizer = ChatTokenizer.load(Path(folder), template, now and datetime.fromisoformat(now))
        plain["lengths"] = Lengths(tokenizer, **told)
    return Task(**plain)


def send_block(file: IO[bytes], block: Block) -> None:
    """Write a block. Raises OSError."""
    _send(file, {"first": block.first, "compare": block.compare}, block.content)


def read_block(file: IO[bytes]) -> Block:
    """Read a block. Raises EOFError at the end."""
    plain, parts = _read(file)
    return Block(parts[0], **plain)


def send_stretch(file: IO[bytes], stretch: Stretch) -> None:
    """Write what was found in a block. Raises OSError."""
    sketches, found = stretch.sketches, stretch.found
    sums = {**vars(stretch.sums), "by_length": list(stretch.sums.by_length.items())}
    head = {
        "found": found.pack(),
        "marked": list(found.marks),
        "end": stretch.end,
        "sums": sums,
        "languages": stretch.languages,
        "documents": stretch.documents,
        "common": list(stretch.common.items()),
    }
    arrays = (
        stretch.rows,
        stretch.lines,
        stretch.keys,
        stretch.answers,
        sketches.rows,
        sketches.bytes,
        sketches.bands,
    )
    _send(file, head, *(array.tobytes() for array in arrays), *(marks.tobytes() for marks in found.marks.values()))


def read_stretch(file: IO[bytes]) -> Stretch:
    """Read what was found in a block. Raises OSError, EOFError, ValueError."""
    head, parts = _read(file)
    rows, lines, keys, answers, places, prints, bands = (
        np.frombuffer(part, kind) for part, kind in zip(parts, ARRAYS, strict=False)
    )
    count = len(places)
    return Stretch(
        Gatherer.unpack(head["found"], dict(zip(head["marked"], parts[len(ARRAYS) :], strict=True))),
        head["end"],
        rows,
        lines,
        keys,
        answers,
        Sketches(places, prints.reshape(count, SLOTS), bands.reshape(count, BANDS)),
        Sums(**{**head["sums"], "by_length": Counter(dict(head["sums"]["by_length"]))}),
        Counter(head["languages"]),
        head["documents"],
        dict(head["common"]),
    )


def _send(file: IO[bytes], head: Any, *parts: bytes | bytearray) -> None:
    line = json.dumps([head, [len(part) for part in parts]])  # in ASCII, so that half characters come through
    file.write(line.encode() + b"\n")
    for part in parts:
        file.write(part)
    file.flush()


def _read(file: IO[bytes]) -> tuple[Any, list[bytearray]]:
    line = file.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head, sizes = json.loads(line)
    return head, [_exactly(file, size) for size in sizes]


def _exactly(file: IO[bytes], size: int) -> bytearray:
    """So many bytes, which may be written to: arrays are made of them as they are."""
    part = bytearray(size)
    if file.readinto(part) != size:  # type: ignore[attr-defined]  # a buffered pipe reads until it is full
        raise EOFError
    return part
