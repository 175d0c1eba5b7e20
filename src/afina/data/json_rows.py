"""Rows out of JSON: an array, one object a line, or one object with a list in it; streamed, never loaded whole.

Forgiven: a trailing comma, blank lines, line ends and BOMs of any kind. Not forgiven, but survived: a broken row does not
hide the others. Knows nothing of formats: a row is whatever value stands there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import orjson

from afina.core.messages import N_, say
from afina.data.faults import Fault, Unreadable, shorten
from afina.data.json_window import AFTER_END, EXPLAIN, GIVEN_UP, LOST, UNFINISHED, Window
from afina.data.textfile import TextFile, lines, too_big

MAX_BROKEN = 1000
"""After so many broken rows an array is given up."""
MANY_FIELDS = 64
"""Rows with more fields are looked through at once rather than field by field."""
ROW_LISTS = frozenset(
    {"messages", "conversations", "conversation", "history", "tools", "chosen", "rejected", "prompt", "completion"}
)
"""Names of lists that belong to a row; a list of any other name in a top-level object holds the rows."""

_FIRST_KEY = re.compile(r'\{\s*"(?:[^"\\]|\\.){0,200}"')


@dataclass(frozen=True, slots=True)
class Record:
    """A raw row: its number from 1, its line in the file, its value."""

    row: int
    line: int | None
    value: Any


Records = Iterator[Record | Fault]


def read_json_lines(source: TextFile) -> Records:
    """One value a line; blank lines count as lines but not as rows."""
    with source.open() as file:
        yield from json_lines(file)


def json_lines(file: IO[str], row: int = 0, line: int = 0) -> Records:
    """The same for an open text, behind `row` rows and `line` lines."""
    for number, text, whole in lines(file):
        text = text.strip().removesuffix(",")
        if not text:
            continue
        row += 1
        yield too_big(row, line + number) if not whole else _line(row, line + number, text)


def _line(row: int, number: int, text: str) -> Record | Fault:
    try:
        value = orjson.loads(text)
    except ValueError:
        window = Window(None, text, number)
        try:
            value = window.value(row)
            window.space()
            if window.at < len(window.text):
                return window.fault(row, AFTER_END)
        except Unreadable as broken:
            return broken.fault
    return _twice(row, number, text, value) or Record(row, number, value)


def _twice(row: int, line: int, text: str, value: Any) -> Fault | None:
    """A field that stands twice in a row would lose one of its values without a word."""
    if not isinstance(value, dict):
        return None
    spaced = '" :' in text
    if not spaced and text.count('":') == len(value):
        return None  # as many names as fields: none stands twice
    if spaced or len(value) > MANY_FIELDS:
        twice = min(_doubled(text), default=None)
        return None if twice is None else _said_twice(row, line, text, twice)
    for key in value:
        if text.count(f'"{key}":') > 1 and key in _doubled(text):
            return _said_twice(row, line, text, key)
    return None


def _said_twice(row: int, line: int, text: str, key: str) -> Fault:
    message = say(N_("Row {row}: the field “{field}” stands twice."), row=row, field=shorten(key, 60))
    return Fault("bad_json", message, row, line, shorten(key, 60), excerpt=shorten(text))


def _doubled(text: str) -> set[str]:
    """Names that stand twice in the outermost object of `text`."""
    names: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal names
        names = [name for name, _ in pairs]  # the outermost object is finished last
        return dict(pairs)

    try:
        json.JSONDecoder(object_pairs_hook=collect).raw_decode(text)
    except (ValueError, RecursionError):
        return set()
    return {name for name, count in Counter(names).items() if count > 1}


def read_json(source: TextFile) -> Records:
    """A top-level array, an object with a list of rows in it, or values one after the other."""
    with source.open() as file:
        try:
            yield from _whole_file(Window(file))
        except _Over:
            return


def _whole_file(window: Window) -> Records:
    scan = _Scan(window)
    window.space()
    if window.peek() != "[":
        yield from scan.values()
        return
    window.skip(1)
    yield from scan.array()
    window.space()
    if window.peek():
        yield window.fault(None, AFTER_END)


class _Scan:
    """The walk through a file of JSON that is not one value a line."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.row = 0
        self._broken = 0
        self._separated = True  # the next row of a list needs no comma in front of it

    def array(self) -> Records:
        """The rows of a list whose opening bracket is behind us."""
        window = self.window
        self._separated = True
        while True:
            commas = window.space(",")
            following = window.peek()
            if following == "]":
                window.skip(1)
                return
            if following == "":
                yield window.fault(None, UNFINISHED)
                return
            if not commas and not self._separated:
                yield window.fault(self.row + 1, EXPLAIN["Expecting ',' delimiter"])
            self._separated = False
            yield from self._element()

    def _element(self) -> Records:
        window = self.window
        self.row += 1
        line = window.line
        key = window.matches(_FIRST_KEY)
        begin = key.group() if key else ""
        try:
            value = window.value(self.row)
        except Unreadable as broken:
            yield broken.fault
            self._recover(begin)
            return
        yield _twice(self.row, line, window.segment, value) or Record(self.row, line, value)

    def _recover(self, begin: str) -> None:
        """Go to where the next row seems to begin: an object with the same first name as this one."""
        self._broken += 1
        if self._broken > MAX_BROKEN:
            raise Unreadable(self.window.fault(None, GIVEN_UP))
        if not begin:
            raise Unreadable(self.window.fault(None, LOST))
        name = begin[begin.index('"') :]
        self.window.skip(1)
        if not self.window.find(re.compile(r"\{\s*" + re.escape(name))):
            raise _Over
        self._separated = True

    def values(self) -> Records:
        """Top-level objects one after the other; an object with a list of objects in it gives the rows of that list."""
        window = self.window
        while True:
            window.space(",")
            following = window.peek()
            if following == "":
                return
            if following == "{":
                key = window.matches(_FIRST_KEY)
                try:
                    yield from self._object()
                except _Broken as broken:
                    self.row += 1
                    yield broken.fault
                    self._recover(key.group() if key else "")
            else:
                self.row += 1
                line = window.line
                yield Record(self.row, line, window.value(self.row))

    def _object(self) -> Records:
        window = self.window
        fields: dict[str, Any] = {}
        lists: list[str] = []
        line = window.line
        window.skip(1)
        while (following := (window.space(","), window.peek())[1]) != "}":
            key = self._name(following)
            if key in fields or key in lists:
                message = say(
                    N_("Row {row}: the field “{field}” stands twice."), row=self.row + 1, field=shorten(key, 60)
                )
                yield Fault("bad_json", message, self.row + 1, window.line, shorten(key, 60))
            if key not in ROW_LISTS and window.matches(_LIST_OF_OBJECTS):
                lists.append(key)
                if len(lists) == 2:
                    yield _several(lists, window.line)
                window.skip(1)
                yield from self.array()
            else:
                fields[key] = self._part()
        window.skip(1)
        if not lists:
            self.row += 1
            yield Record(self.row, line, fields)

    def _name(self, following: str) -> str:
        window = self.window
        if following == "":
            raise Unreadable(window.fault(self.row + 1, UNFINISHED))
        if following != '"':
            raise _Broken(window.fault(self.row + 1, EXPLAIN["Expecting property name"]))
        key = self._part()
        window.space()
        if window.peek() != ":":
            raise _Broken(window.fault(self.row + 1, EXPLAIN["Expecting ':' delimiter"]))
        window.skip(1)
        window.space()
        return str(key)

    def _part(self) -> Any:
        try:
            return self.window.value(self.row + 1)
        except Unreadable as broken:
            raise _Broken(broken.fault) from None


class _Over(Exception):  # noqa: N818 - nothing is wrong that has not been said
    """Nothing more can be read after a broken row."""


class _Broken(Unreadable):
    """A row is broken, but the next one may be found."""


def _several(names: list[str], line: int) -> Fault:
    message = say(N_("The file holds several lists: {names}."), names=", ".join(shorten(name, 60) for name in names))
    return Fault("unknown_format", message, None, line)


_LIST_OF_OBJECTS = re.compile(r"\[\s*\{")
