"""What `parallel.py` and the processes it starts (`looker.py`) tell each other."""

from __future__ import annotations

from dataclasses import dataclass

from afina.data.examples import Format
from afina.data.formats import Columns, Mapping
from afina.data.lengths import Lengths

FAR = 1_000_000
"""Later blocks count their rows from here until it is known where they stand: no row of theirs is taken for a first."""


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

    content: bytes
    first: bool
    compare: bool
