"""Frozen copies of datasets, named by their content, so that a run can be repeated when the file has changed or is gone.

A version is the SHA-256 of the canonical rows, one JSON object a line: the same rows give the same version, whatever the
format they came in. The copy is gzip without a time stamp, so its bytes are the same everywhere too.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from afina.core.errors import AfinaError, Problem
from afina.core.files import atomic
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.data.examples import Example, Format
from afina.data.faults import Fault
from afina.data.mapping import read_as_remembered

_SHA = re.compile(r"[0-9a-f]{64}")
_ENOUGH = 20


@dataclass(frozen=True)
class Version:
    """A frozen dataset: its name by content, the format it came in, its rows, and the copy."""

    sha256: str
    format: Format
    rows: int
    path: Path


def freeze(home: Home, path: Path) -> Version:
    """Copy the rows of a file or folder into the store, once for the same content; columns as `mapping.py` remembers them.

    Raises AfinaError with the first errors of the file when it has any (`checks.check` gives them all).
    """
    source = read_as_remembered(home, path)
    digest = hashlib.sha256()
    rows = 0
    problems: list[Problem] = []
    draft = home.store / f".{uuid.uuid4().hex}"
    with atomic(draft, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        for item in source:
            if isinstance(item, Example):
                line = item.line_of_json() + b"\n"
                digest.update(line)
                packed.write(line)
                rows += 1
            elif item.severity == "error" and len(problems) < _ENOUGH:
                problems.append(_problem(item))
        if not rows and not problems:
            problems.append(Problem("empty_file", say(N_("There is no example in the file."))))
        if problems or source.format is None:
            raise AfinaError(problems)
    copy = _copy(home, digest.hexdigest())
    draft.replace(copy)
    return Version(digest.hexdigest(), source.format, rows, copy)


def _problem(fault: Fault) -> Problem:
    return Problem(fault.code, fault.message, fault.remedy, fault.field, fault.value)


def open_version(home: Home, sha256: str) -> Iterator[Example]:
    """The rows of a frozen dataset, numbered from 1. Raises AfinaError `not_found`, and `damaged` where reading shows it."""
    copy = _copy(home, sha256)
    if not copy.is_file():
        message = say(N_("The stored copy {sha256} of a dataset is not there."), sha256=sha256[:12])
        raise AfinaError(Problem("not_found", message, say(N_("Start the run again from the dataset."))), "not_found")
    return _rows(copy, sha256)


def _rows(copy: Path, sha256: str) -> Iterator[Example]:
    digest = hashlib.sha256()
    try:
        with gzip.open(copy, "rb") as file:
            for row, line in enumerate(file, 1):
                digest.update(line)
                yield Example.from_json(orjson.loads(line), row)
    except (OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        raise _damaged(sha256) from error
    if digest.hexdigest() != sha256:
        raise _damaged(sha256)


def _damaged(sha256: str) -> AfinaError:
    message = say(N_("The stored copy {sha256} of a dataset is damaged."), sha256=sha256[:12])
    return AfinaError(Problem("damaged", message, say(N_("Start the run again from the dataset."))), "failed")


def _copy(home: Home, sha256: str) -> Path:
    if not _SHA.fullmatch(sha256):
        message = say(N_("“{sha256}” does not name a version of a dataset."), sha256=sha256[:80])
        raise AfinaError(Problem("not_found", message), "not_found")
    return home.store / f"{sha256}.jsonl.gz"
