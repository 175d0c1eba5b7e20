"""All rows of a version that have a problem, and how long its rows are: what remedies and filters need beyond a report.

A report names the first rows of each kind; here all of them are found, in a pass of their own that is remembered for the
version (versions never change). Knows nothing of files that people bring.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from afina.core.errors import AfinaError
from afina.core.files import atomic
from afina.core.paths import Home
from afina.data import blocks
from afina.data.cache import content
from afina.data.entries import Entry
from afina.data.examples import Example
from afina.data.mapping import read_as_remembered
from afina.data.readers import read

if TYPE_CHECKING:
    from afina.data.template import ChatTokenizer


@dataclass(frozen=True)
class Measure:
    """What rows are measured by: a tokenizer, what tells it apart, the tokens a row may have, the validation dataset."""

    tokenizer: ChatTokenizer | None = None
    key: str = "none"
    max_length: int | None = None
    validation: Path | None = None


def marked(home: Home, path: Path, code: str, measure: Measure) -> list[int]:
    """The numbers of all rows of the version at `path` that have `code`, in order."""
    if code == "too_long":
        limit = measure.max_length
        return (
            []
            if limit is None
            else [row for row, tokens in enumerate(lengths(home, path, measure), 1) if tokens > limit]
        )
    facts = [
        code,
        content(measure.validation) if measure.validation is not None and code == "leak" else "",
        measure.key if code in _BY_TOKENIZER else "",
    ]
    return list(_kept(home, path, facts, lambda: _find(path, code, measure)))


def lengths(home: Home, path: Path, measure: Measure) -> array[int]:
    """The tokens of every row that is a conversation; 0 for those that cannot be used or are divided, such as texts."""
    tokenizer = measure.tokenizer
    if tokenizer is None:
        return array("I")
    return _kept(home, path, ["tokens", measure.key], lambda: (_tokens(entry, tokenizer) for entry in _entries(path)))


def _tokens(entry: Entry, tokenizer: ChatTokenizer) -> int:
    if not entry.usable or entry.example is None or entry.example.text is not None:
        return 0
    try:
        return tokenizer.count(entry.example)
    except AfinaError:
        return 0


_BY_TOKENIZER = ("template_mismatch",)
_COMPARED = ("near_duplicate", "secret", "personal_data")
"""What only the whole check finds; it names all rows of these."""


def _find(path: Path, code: str, measure: Measure) -> Iterator[int]:
    if code == "duplicate":
        return _repeated(_entries(path))
    if code == "leak":
        held: set[bytes] = set()
        if measure.validation is not None:
            source = read_as_remembered(blocks.home_of(path), measure.validation)
            held = {item.key() for item in source if isinstance(item, Example)}
        return (row for row, example in _usable(_entries(path)) if example.key() in held)
    if code == "template_mismatch" and measure.tokenizer is not None:
        return _mismatched(_entries(path), measure.tokenizer)
    if code in _COMPARED:
        from afina.data.checks import check

        return iter(sorted(set(check(path).marks.get(code, ()))))
    return (entry.row or 0 for entry in _entries(path) if any(fault.code == code for fault in entry.faults))


def _repeated(entries: Iterable[Entry]) -> Iterator[int]:
    seen: set[bytes] = set()
    for row, example in _usable(entries):
        key = example.key()
        if key in seen:
            yield row
        seen.add(key)


def _mismatched(entries: Iterable[Entry], tokenizer: ChatTokenizer) -> Iterator[int]:
    for row, example in _usable(entries):
        try:
            tokenizer.count(example)
        except AfinaError:
            yield row


def _usable(entries: Iterable[Entry]) -> Iterator[tuple[int, Example]]:
    for entry in entries:
        if entry.usable and entry.row is not None and entry.example is not None:
            yield entry.row, entry.example


def _entries(path: Path) -> Iterator[Entry]:
    return (entry for entry in read(path).entries() if entry.row is not None)


def _kept(home: Home, path: Path, facts: list[str], find: Callable[[], Iterable[int]]) -> array[int]:
    """What was found before about the same version and the same question; else what `find` gives."""
    name = hashlib.blake2b(orjson.dumps([blocks.sha_of(path), *facts]), digest_size=16).hexdigest()
    place = home.state / "marks" / f"{name}.u32"
    if not place.is_file():
        found = array("I", find())
        with atomic(place, "wb") as file:
            file.write(found.tobytes())
    return _read(place)


@lru_cache(maxsize=64)
def _read(place: Path) -> array[int]:
    found = array("I")
    found.frombytes(place.read_bytes())
    return found
