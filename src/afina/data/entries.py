"""A row of a dataset whether or not it can be used, and how it is kept: one line of JSON a row.

A row that can be read is kept in the canonical form of its example alone: what is wrong with it is judged again whenever
it is read. A row that cannot be read is kept under "broken", with its findings and what there was of it. Knows nothing of
files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

from afina.core.messages import Message
from afina.data.conversations import judge
from afina.data.examples import Example, Turn
from afina.data.faults import Fault, shorten
from afina.data.report import read_fault

BROKEN = b'{"broken":'
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Entry:
    """One row as read. `row` is None for findings on the file as a whole.

    example: there also when the row has errors, as far as it could be made out; raw: the row as it stood in the file,
    where no example could be made of it; faults: all that is wrong with it.
    """

    row: int | None
    line: int | None = None
    example: Example | None = None
    raw: Any = None
    faults: list[Fault] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether a model can learn from it."""
        return self.example is not None and not any(fault.severity == "error" for fault in self.faults)

    def pack(self) -> bytes:
        """The line that keeps it, without the line's end."""
        example, stored = self.example, self.faults
        if example is not None and stored:
            if _has_surrogates(example):
                example = _whole(example)
            found = {fault.code for fault in judge(example)}
            stored = [fault for fault in stored if fault.code not in found]
        try:
            return example.line_of_json() if example is not None and not stored else self._broken(stored, example)
        except TypeError:  # numbers beyond 64 bits, half characters, bytes: kept is what a person can see of them
            seen = self.raw if example is None else example.excerpt
            return self._broken(self.faults, None, None if seen is None else shorten(_printable(seen), 2000))

    def _broken(self, faults: list[Fault], example: Example | None, seen: str | None = None) -> bytes:
        """The line of a row that cannot be used as it is."""
        kept: dict[str, Any] = {"faults": [asdict(at_row(fault, 0)) for fault in faults]}  # its number is no content
        if self.row is None:
            kept["whole"] = True
        if self.line is not None:
            kept["line"] = self.line
        if example is not None:
            kept["example"] = example.as_json()
        elif seen is not None:
            kept["raw"] = seen
        elif self.raw is not None:
            kept["raw"] = self.raw
        return orjson.dumps({"broken": kept if seen is None else _printable(kept)})

    def key(self) -> bytes:
        """16 bytes that are equal for rows with the same content."""
        return hashlib.blake2b(self.pack(), digest_size=16).digest()


def unpack(line: bytes, row: int) -> Entry:
    """The inverse of `Entry.pack`; `row` is its number now. Raises ValueError, KeyError or TypeError for anything else."""
    value = orjson.loads(line)
    if not line.startswith(BROKEN):
        example = Example.from_json(value, row)
        return Entry(row, None, example, faults=_judged(example))
    kept = value["broken"]
    number = None if kept.get("whole") else row
    faults = [at_row(read_fault(item), number) for item in kept["faults"]]
    entry = Entry(number, kept.get("line"), raw=kept.get("raw"), faults=faults)
    if "example" in kept:
        entry.example = Example.from_json(kept["example"], row)
        entry.faults += _judged(entry.example)
    return entry


def _judged(example: Example) -> list[Fault]:
    """What is wrong with a row, with how it begins in place of what stood in the file."""
    return [replace(fault, excerpt=example.excerpt) for fault in judge(example)]


def is_whole(line: bytes) -> bool:
    """Whether a kept line is a finding on the file as a whole, and no row."""
    return line.startswith(BROKEN) and orjson.loads(line)["broken"].get("whole") is True


def at_row(fault: Fault, row: int | None) -> Fault:
    """The same finding when its row has another number now."""
    if fault.row == row:
        return fault
    return replace(fault, row=row, message=_at(fault.message, row, fault.code == "mixed_formats"))


def _at(message: Message, row: int | None, mixed: bool) -> Message:
    values = {name: _at(value, row, mixed) if name == "problem" else value for name, value in message.values.items()}
    if "row" in values:
        values["row"] = row
    if mixed and row is not None and isinstance(values.get("last"), int):
        values["last"] = row - 1
    return Message(message.template, values)


def joined(entries: Iterable[Entry]) -> Iterator[Entry]:
    """A finding that stands before a row of the same number, brought together with that row."""
    held: Entry | None = None
    for entry in entries:
        if held is not None:
            if held.row is not None and held.row == entry.row:
                entry.faults = held.faults + entry.faults
            else:
                yield held
        held = None
        if entry.example is None and entry.raw is None and entry.row is not None:
            held = entry
        else:
            yield entry
    if held is not None:
        yield held


def _has_surrogates(example: Example) -> bool:
    return any(_SURROGATES.search(text) for text in texts(example))


def texts(example: Example) -> Iterator[str]:
    """Everything that is said in an example."""
    if example.text is not None:
        yield example.text
    for turns in (example.turns, example.chosen or (), example.rejected or ()):
        for turn in turns:
            yield turn.content


def with_texts(example: Example, change: Any) -> Example:
    """The example with every text put through `change`; the very same one when nothing changes."""
    if all(change(text) == text for text in texts(example)):
        return example

    def said(turns: tuple[Turn, ...] | None) -> tuple[Turn, ...] | None:
        return None if turns is None else tuple(replace(turn, content=change(turn.content)) for turn in turns)

    return replace(
        example,
        turns=said(example.turns) or (),
        text=None if example.text is None else change(example.text),
        chosen=said(example.chosen),
        rejected=said(example.rejected),
    )


def _whole(example: Example) -> Example:
    """The example with half characters replaced by the sign for them."""
    return with_texts(example, lambda text: _SURROGATES.sub("�", text))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub("�", value)
    if isinstance(value, dict):
        return {str(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 63:
        return str(value)[:100] if value.bit_length() < 1000 else "…"
    return value if isinstance(value, int | float | bool | None) else shorten(str(value))
