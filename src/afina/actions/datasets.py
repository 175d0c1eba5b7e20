"""Datasets: the files in `training/datasets`, what is in them and what is wrong with them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from afina import __version__
from afina.core.errors import AfinaError, Problem
from afina.core.files import atomic
from afina.core.hub import PREFIX, is_hub
from afina.core.messages import N_, say
from afina.core.paths import Home, confined, local_path
from afina.core.spec import TrainSpec
from afina.data.folders import data_files, size_of, state_of
from afina.data.hub import bring
from afina.data.mapping import remembered
from afina.data.revision import REVISION
from afina.data.watch import how_far
from afina.registry import models as bases
from afina.registry import runs as rows
from afina.registry.records import DatasetInfo
from afina.registry.tables import DatasetRow
from afina.runs.index import index

if TYPE_CHECKING:
    from afina.data.checks import Report
    from afina.data.template import ChatTokenizer

LENGTH: int = TrainSpec.model_fields["max_length"].default
"""Rows longer than a run takes unless told otherwise are named, so that nobody learns of it only afterwards."""
QUICK_BYTES = 4_000_000
"""Files up to this size are looked through when the list is asked for."""
QUICK_SECONDS = 1.5
"""But not for longer than this; the rest follows with the next list or `refresh_datasets`."""


def list_datasets(home: Home) -> list[DatasetInfo]:
    """The files in the datasets folder by name. New small files are looked through at once, large ones later."""
    until: float | None = None  # counted from the first look, however long opening the index takes

    def may_look(path: Path) -> bool:
        nonlocal until
        until = until or time.monotonic() + QUICK_SECONDS
        return size_of(path) <= QUICK_BYTES and time.monotonic() < until

    return _listed(home, may_look)


def refresh_datasets(home: Home) -> None:
    """Look through every file that has not been, whatever its size. For a quiet moment of a server."""
    _listed(home, lambda _path: True)


def _listed(home: Home, may_look: Callable[[Path], bool]) -> list[DatasetInfo]:
    counter = counter_of(home)
    found = []
    with index(home) as session:
        used = rows.last_use(session)
        files = dataset_files(home)
        for path in files:
            try:
                one = _found(home, path)
                report = _known(home, session, one, counter)
                if report is None and may_look(path):
                    report = _look(home, session, one, counter)
                found.append(_info(home, one, report, used.get(path.name)))
            except FileNotFoundError:
                continue
        names = [path.name for path in files]
        session.execute(delete(DatasetRow).where(DatasetRow.name.not_in(names)))
        session.commit()
    return found


def dataset_files(home: Home) -> list[Path]:
    """The files and folders that count as datasets: not hidden, not half written, not empty."""
    if not home.datasets.is_dir():
        return []
    files = [
        path
        for path in home.datasets.iterdir()
        if not path.name.startswith((".", "~")) and (path.is_file() or (path.is_dir() and data_files(path)))
    ]
    return sorted((path for path in files if path.suffix != ".part"), key=lambda path: path.name.lower())


@dataclass(frozen=True)
class Found:
    """A dataset: its name, the person's file, and what is read for it (that file, or the version made of it)."""

    name: str
    file: Path
    path: Path


def dataset(home: Home, name: str) -> tuple[DatasetInfo, Report]:
    """One dataset and the whole report on it. Raises AfinaError `dataset_not_found`."""
    found = find_dataset(home, name)
    report = report_on(home, found)
    with index(home) as session:
        return _info(home, found, report, rows.last_use(session).get(found.name)), report


def dataset_info(home: Home, name: str) -> DatasetInfo:
    """What is known of a dataset without looking through it now. Raises AfinaError `dataset_not_found`."""
    found = find_dataset(home, name)
    with index(home) as session:
        report = _known(home, session, found, counter_of(home))
        return _info(home, found, report, rows.last_use(session).get(found.name))


def look_progress(home: Home, name: str) -> tuple[int, int] | None:
    """The bytes read and the bytes there are, while the dataset is being looked through; None while it is not.

    Raises AfinaError `dataset_not_found`."""
    return how_far(find_dataset(home, name).path)


def report_on(home: Home, found: Found) -> Report:
    """The report on a dataset that has been found; remembered for those in the datasets folder."""
    counter = counter_of(home)
    if found.file.parent != home.datasets:
        return _check(home, found.path, counter)
    with index(home) as session:
        return _known(home, session, found, counter) or _look(home, session, found, counter)


def find_dataset(home: Home, name: str, *, paths: bool = False) -> Found:
    """The dataset named `name`; with `paths` also any file or folder on this machine, and `hub:owner/name[:split]`, which
    is brought into the datasets folder. Raises AfinaError `dataset_not_found`."""
    if paths and is_hub(name):
        return _found(home, bring(home.create(), name))
    try:
        path = confined(home.datasets, name)
        if path.exists():
            return _found(home, path)
    except AfinaError:
        if not paths:
            raise
    local = local_path(name)
    if paths and local.exists():
        return Found(name, local.absolute(), local.absolute())
    raise AfinaError(
        Problem(
            "dataset_not_found",
            say(N_("There is no dataset “{name}”."), name=name),
            say(N_("Put the file into {folder}, or choose one of those there."), folder=str(home.datasets)),
            "dataset",
            name,
        ),
        kind="not_found",
    )


def _found(home: Home, file: Path) -> Found:
    from afina.data.versions import current

    return Found(file.name, file, current(home, file))


def _changed(home: Home, found: Found) -> bool:
    """Whether the file was changed after a version had been made of it."""
    from afina.data.versions import file_changed

    return found.path != found.file and file_changed(home, found.file)


def check_dataset(
    home: Home, name: str, *, model: str | None = None, max_length: int | None = None, validation: str | None = None
) -> Report:
    """The report on a dataset or any file on this machine, counted with the tokenizer of `model` or the first at hand.

    Rows longer than `max_length` (else a run's own default) and rows that also stand in the dataset `validation` are
    named. Raises AfinaError `dataset_not_found`, `model_not_found`.
    """
    other = find_dataset(home, validation, paths=True).path if validation is not None else None
    return _check(home, find_dataset(home, name, paths=True).path, counter_of(home, model), max_length, other)


def add_dataset(home: Home, name: str, stream: IO[bytes]) -> DatasetInfo:
    """Copy `stream` into the datasets folder under `name`, numbered when another file has that name.

    The same content under the same name is kept once. Raises AfinaError `bad_name`, `no_disk_space`, `no_permission`.
    """
    home.create()
    target = confined(home.datasets, name)
    digest = hashlib.sha256()
    part = confined(home.datasets, f"upload-{os.getpid()}-{time.monotonic_ns()}.part")
    try:
        with atomic(part, "wb") as file:
            while block := stream.read(1 << 20):
                digest.update(block)
                file.write(block)
        path = _free_name(target, digest.hexdigest())
        part.replace(path)
    except OSError as error:
        raise _cannot_write(error) from None
    finally:
        part.unlink(missing_ok=True)
    found = _found(home, path)
    report = report_on(home, found) if path.stat().st_size <= QUICK_BYTES else None
    return _info(home, found, report, None)


def bring_dataset(home: Home, name: str) -> DatasetInfo:
    """Bring a dataset of the hub (`owner/name[:split]`, with or without `hub:`) into the datasets folder, once.

    Raises AfinaError `bad_name`, `no_network`, `not_found`, `no_split`, `no_disk_space`.
    """
    given = name.strip()
    try:
        path = bring(home.create(), given if is_hub(given) else PREFIX + given)
    except OSError as error:
        raise _cannot_write(error) from None
    return dataset_info(home, path.name)


def delete_dataset(home: Home, name: str) -> None:
    """Delete the file and the versions made of it. Runs keep theirs. Raises AfinaError `dataset_not_found`."""
    from afina.data import versions

    path = find_dataset(home, name).file
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        versions.forget(home, path.name)
        versions.tidy(home)
    except OSError as error:
        raise _cannot_write(error) from None
    with index(home) as session:
        row = session.get(DatasetRow, path.name)
        if row is not None:
            session.delete(row)
            session.commit()


def _free_name(target: Path, sha256: str) -> Path:
    """`target`, or with a number before the ending when another content has that name."""
    number, path = 1, target
    while path.exists():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return path
        number += 1
        path = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return path


def _cannot_write(error: OSError) -> AfinaError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = Problem(
            "no_disk_space", say(N_("The disk is full.")), say(N_("Free some space, for example by deleting old runs."))
        )
    else:
        problem = Problem(
            "no_permission",
            say(N_("The file cannot be written: {reason}."), reason=error.strerror or str(error)),
            say(N_("Look at the owner and the permissions of the home folder.")),
        )
    return AfinaError(problem, kind="failed")


@dataclass(frozen=True)
class Counter:
    """The tokenizer that counts, and what tells it apart."""

    tokenizer: ChatTokenizer | None
    mark: str


def counter_of(home: Home, model: str | None = None) -> Counter:
    """The tokenizer of `model`; without one the starter's, else that of the first model that has one, else none."""
    from afina.data.template import ChatTokenizer

    if model is not None:
        from afina.actions.models import resolve_model

        folder = resolve_model(home, model, paths=True).folder
        return Counter(ChatTokenizer.load(folder), f"{folder} auto")
    folders = [home.models / bases.STARTER]
    if home.models.is_dir():
        folders += sorted(path for path in home.models.iterdir() if not path.name.startswith("."))
    for folder in folders:
        file = folder / "tokenizer.json"
        if not file.is_file() or not (folder / "config.json").is_file():
            continue
        mark = f"{file} {file.stat().st_mtime_ns}"
        if mark not in _tokenizers:
            try:
                loaded = ChatTokenizer.load(folder)
            except AfinaError:
                continue
            _tokenizers.clear()
            _tokenizers[mark] = loaded
        return Counter(_tokenizers[mark], mark)
    return Counter(None, "none")


_tokenizers: dict[str, ChatTokenizer] = {}


def _fingerprint(home: Home, found: Found, counter: Counter) -> str:
    state, mapping = state_of(found.path), remembered(home, found.file)
    facts = f"{__version__} {LENGTH} {REVISION} {found.path.name} {state} {counter.mark} {mapping}"
    return hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()


def _known(home: Home, session: Session, found: Found, counter: Counter) -> Report | None:
    """The report from an earlier look, when neither the file nor the tokenizer has changed."""
    from afina.data.report import unpack

    row = session.get(DatasetRow, found.name)
    if row is None or row.fingerprint != _fingerprint(home, found, counter):
        return None
    try:
        return unpack(row.report)
    except (KeyError, TypeError, ValueError):
        return None


def _look(home: Home, session: Session, found: Found, counter: Counter) -> Report:
    """Look through a dataset and remember the report."""
    mark = _fingerprint(home, found, counter)
    report = _check(home, found.path, counter)
    kept = {"name": found.name, "fingerprint": mark, "report": report.pack()}
    try:
        session.merge(DatasetRow(**kept))
        session.commit()
    except IntegrityError:  # someone else looked at the same time, and was quicker by a moment
        session.rollback()
        session.merge(DatasetRow(**kept))
        session.commit()
    return report


def _check(
    home: Home, path: Path, counter: Counter, max_length: int | None = None, validation: Path | None = None
) -> Report:
    from afina.data.cache import checked

    length = max_length or LENGTH
    key = counter.mark
    return checked(home, path, tokenizer=counter.tokenizer, tokenizer_key=key, max_length=length, validation=validation)


def _info(home: Home, found: Found, report: Report | None, used: str | None) -> DatasetInfo:
    size, modified = size_of(found.file), found.file.stat().st_mtime
    info = DatasetInfo(name=found.file.name, size=size, modified=modified, last_used=used)
    info.edited, info.changed = found.path != found.file, _changed(home, found)
    if report is not None:
        info.format, info.rows = report.format, report.rows
        info.tokens, info.answer_tokens = report.tokens, report.answer_tokens
        info.errors, info.warnings = len(report.errors), len(report.warnings)
        info.status = "broken" if report.errors else "ready"
    return info
