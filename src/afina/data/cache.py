"""Reports kept by content, tokenizer and settings, so that a list of datasets costs no second reading.

Under `.state/reports`; deleting that folder loses nothing but time.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from afina.core.files import read_json, write_json
from afina.core.paths import Home
from afina.data.folders import data_files, size_of
from afina.data.formats import Mapping
from afina.data.mapping import remembered
from afina.data.report import Report, unpack
from afina.data.revision import REVISION
from afina.data.watch import looking, seen

if TYPE_CHECKING:
    from afina.data.template import ChatTokenizer

KEPT = 500


def checked(
    home: Home,
    path: Path,
    *,
    tokenizer: ChatTokenizer | None = None,
    tokenizer_key: str = "",
    max_length: int | None = None,
    validation: Path | None = None,
    train_on: str = "answers",
    system_prompt: str | None = None,
) -> Report:
    """As `checks.check`, but the same question about the same content is answered from the cache.

    `tokenizer_key` names the tokenizer and template (for instance the model's folder and the template's name); without it
    nothing that depends on a tokenizer is cached.
    """
    mapping = remembered(home, path)
    other = None if validation is None else remembered(home, validation)
    if (tokenizer is not None and not tokenizer_key) or not path.exists():
        return _check(path, tokenizer, max_length, validation, train_on, system_prompt, mapping, other)
    facts = [
        REVISION,
        content(path),
        path.suffix.lower(),
        tokenizer_key if tokenizer is not None else None,
        max_length,
        content(validation) if validation is not None and validation.exists() else None,
        train_on,
        system_prompt,
        None if mapping is None else asdict(mapping),
        None if other is None else asdict(other),
    ]
    name = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    place = home.state / "reports" / f"{name}.json"
    with looking(path, size_of(path)):
        try:
            return unpack(read_json(place))
        except (OSError, ValueError, KeyError, TypeError):
            report = _check(path, tokenizer, max_length, validation, train_on, system_prompt, mapping, other)
        write_json(place, report.pack())
    _prune(place.parent)
    return report


def _check(
    path: Path,
    tokenizer: ChatTokenizer | None,
    max_length: int | None,
    validation: Path | None,
    train_on: str,
    system_prompt: str | None,
    mapping: Mapping | None,
    validation_mapping: Mapping | None,
) -> Report:
    from afina.data.checks import check

    return check(
        path,
        tokenizer=tokenizer,
        max_length=max_length,
        validation=validation,
        train_on=train_on,
        system_prompt=system_prompt,
        mapping=mapping,
        validation_mapping=validation_mapping,
    )


def content(path: Path) -> str:
    """The hash of a file's bytes, or of all files of a folder; remembered while sizes and times of change stay."""
    if path.is_dir():
        parts = [f"{file.relative_to(path).as_posix()} {content(file)}" for file in data_files(path)]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    about = path.stat()
    return _hash(path.absolute(), about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=1000)
def _hash(path: Path, size: int, changed: int, inode: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            seen(0)
            digest.update(block)
    return digest.hexdigest()


def _prune(folder: Path) -> None:
    """Keep the newest KEPT reports."""
    reports: list[tuple[float, Path]] = []
    for report in folder.glob("*.json"):
        with suppress(FileNotFoundError):  # another process may tidy up too
            reports.append((report.stat().st_mtime, report))
    for _, report in sorted(reports)[:-KEPT]:
        report.unlink(missing_ok=True)
