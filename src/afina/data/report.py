"""Findings gathered into groups: what a person is told about a dataset. Knows nothing of reading or tokens."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from afina.core.messages import N_, Message, say
from afina.data.examples import Format
from afina.data.faults import MANY, Fault, Severity, moved, remedy, severity
from afina.data.offers import offers

KINDS = ("errors", "warnings", "notes")
FIRST = 20
"""Rows, lines and details named in a group; `count` counts them all."""


@dataclass(frozen=True)
class Group:
    """All findings of one code. `count` is the number of rows; `rows`, `lines`, `details` name the first ones."""

    code: str
    severity: Severity
    count: int
    rows: list[int]
    lines: list[int]
    message: Message
    remedy: Message
    excerpts: list[str] = field(default_factory=list)
    details: list[Fault] = field(default_factory=list)

    def as_json(self, write: Callable[[Message], str] = str) -> dict[str, Any]:
        """A plain object with the sentences written out by `write` (English unless told otherwise)."""
        details = [
            {"row": f.row, "line": f.line, "field": f.field, "value": f.value, "message": write(f.message)}
            for f in self.details
        ]
        plain = {name: getattr(self, name) for name in ("code", "severity", "count", "rows", "lines", "excerpts")}
        remedies = [
            {"way": offer.way, "button": write(offer.button), "consequence": write(offer.consequence)}
            for offer in offers(self.code, self.count)
        ]
        said = {"message": write(self.message), "remedy": write(self.remedy)}
        return {**plain, **said, "details": details, "remedies": remedies}


@dataclass(frozen=True)
class Report:
    """What was found in a file. Numbers of tokens are None when no tokenizer was given.

    rows: all rows, usable or not; answer_tokens: those that are learned from; cut_tokens: those past `max_length`;
    longest: tokens of the longest row, before any cut; lengths: [tokens at most, rows] of the rows by length; marks: for
    each code all rows that have it, where the report is fresh (they are not packed); estimated: in a very large file tokens
    were counted in a part of the rows, spread over the whole file, and multiplied. Rows, errors and duplicates are never estimated.
    """

    format: Format | None
    rows: int
    tokens: int | None = None
    answer_tokens: int | None = None
    cut_tokens: int | None = None
    longest: int | None = None
    errors: list[Group] = field(default_factory=list)
    warnings: list[Group] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    marks: dict[str, array[int]] = field(default_factory=dict, compare=False, repr=False)
    notes: list[Group] = field(default_factory=list)
    estimated: bool = False

    @property
    def ok(self) -> bool:
        """Whether a run may start from it."""
        return not self.errors

    def as_json(self, write: Callable[[Message], str] = str) -> dict[str, Any]:
        """A plain object; `write` turns messages into sentences."""
        counts = {
            name: getattr(self, name)
            for name in ("format", "rows", "tokens", "answer_tokens", "cut_tokens", "longest", "estimated")
        }
        return {
            **counts,
            "lengths": self.lengths,
            **{name: [group.as_json(write) for group in getattr(self, name)] for name in KINDS},
        }

    def pack(self) -> dict[str, Any]:
        """Everything as plain JSON values, messages still untranslated; for `unpack`."""
        return dict(_packed(asdict(replace(self, marks={}))))


def _packed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _packed(item) for key, item in value.items()}
    return [_packed(item) for item in value] if isinstance(value, list) else value


def unpack(data: Mapping[str, Any]) -> Report:
    """The inverse of `Report.pack`. Raises KeyError or TypeError when the data has another shape."""
    return Report(**{**data, **{name: [_group(item) for item in data[name]] for name in KINDS}})


def _group(data: Mapping[str, Any]) -> Group:
    details = [read_fault(item) for item in data["details"]]
    said = {name: _message(data[name]) for name in ("message", "remedy")}
    return Group(**{**data, **said, "details": details})


def read_fault(data: Mapping[str, Any]) -> Fault:
    """A fault that `dataclasses.asdict` has made a plain object. Raises KeyError or TypeError for another shape."""
    return Fault(**{**data, "message": _message(data["message"])})


def _message(data: Mapping[str, Any]) -> Message:
    values = {
        name: _message(value) if isinstance(value, Mapping) and "template" in value else value
        for name, value in data["values"].items()
    }
    return Message(data["template"], values)


class Gatherer:
    """Takes faults one by one and makes groups of them, in the order in which their codes first appear."""

    def __init__(self) -> None:
        self._faults: dict[str, list[Fault]] = {}
        self._counts: dict[str, int] = {}
        self._last: dict[str, int | None] = {}
        self._said: dict[str, Message] = {}
        self.marks: dict[str, array[int]] = {}

    def total(self, code: str, message: Message | None, count: int | None = None) -> None:
        """Say `message` for all findings of `code`, of which there must be one; `count` when it is not what was added."""
        if message is not None:
            self._said[code] = message
        if count is not None:
            self._counts[code] = count

    def add(self, fault: Fault) -> None:
        """Take one fault in. Several of one code in one row count once."""
        kept = self._faults.setdefault(fault.code, [])
        if len(kept) < FIRST:
            kept.append(fault)
        if fault.row is None or self._last.get(fault.code) != fault.row:
            self._counts[fault.code] = self._counts.get(fault.code, 0) + 1
            if fault.row is not None:
                self.mark(fault.code, [fault.row])
        self._last[fault.code] = fault.row

    def mark(self, code: str, rows: Iterable[int]) -> None:
        """Remember, in four bytes each, that these rows have `code`."""
        self.marks.setdefault(code, array("I")).extend(rows)

    def merge(self, later: Gatherer, rows: int, lines: int) -> None:
        """Take in all that was found in the part that follows, which begins behind `rows` rows and `lines` lines."""
        for code, faults in later._faults.items():
            kept = self._faults.setdefault(code, [])
            first = moved(faults[0], rows, lines).row
            again = first is not None and self._last.get(code) == first  # the parts divide a row's findings
            kept += [moved(fault, rows, lines) for fault in faults[: FIRST - len(kept)]]
            self._counts[code] = self._counts.get(code, 0) + later._counts[code] - again
            last = later._last[code]
            self._last[code] = None if last is None else last + rows
            self.mark(code, (row + rows for row in later.marks.get(code, ())[int(again) :]))

    def pack(self) -> dict[str, Any]:
        """All but the marks as plain JSON values; for `unpack`, before anything was said in all."""
        faults = {code: [asdict(fault) for fault in kept] for code, kept in self._faults.items()}
        return {"faults": faults, "counts": self._counts, "last": self._last}

    @classmethod
    def unpack(cls, data: Mapping[str, Any], marks: Mapping[str, bytes | bytearray]) -> Gatherer:
        """The inverse of `pack`, with the bytes of the marks."""
        made = cls()
        made._faults = {code: [read_fault(item) for item in kept] for code, kept in data["faults"].items()}
        made._counts, made._last = dict(data["counts"]), dict(data["last"])
        for code, rows in marks.items():
            made.marks.setdefault(code, array("I")).frombytes(rows)
        return made

    def groups(self, kind: Severity) -> list[Group]:
        """The groups of one severity."""
        return [self._group(code) for code in self._faults if severity(code) == kind]

    def _group(self, code: str) -> Group:
        faults, count = self._faults[code], self._counts[code]
        return Group(
            code,
            severity(code),
            count,
            list(dict.fromkeys(fault.row for fault in faults if fault.row is not None)),
            list(dict.fromkeys(fault.line for fault in faults if fault.line is not None)),
            self._said.get(code) or _sentence(faults[0], count),
            remedy(code),
            [fault.excerpt for fault in faults if fault.excerpt][:3],
            faults,
        )


def _sentence(first: Fault, count: int) -> Message:
    if count == 1 or first.code not in MANY:
        return first.message
    inner = first.message.values["problem"] if first.file else first.message
    values = {
        "count": count,
        "row": first.row or "?",
        "line": first.line or "?",
        "field": first.field or "–",
        "value": first.value or "–",
    }
    message = Message(MANY[first.code], {**values, **inner.values, "count": count})
    return say(N_("{problem} The first is in {file}."), problem=message, file=first.file) if first.file else message
