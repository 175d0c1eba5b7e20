"""Datasets: the files in `training/datasets`, what is in them and what is wrong with them."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sqlalchemy import delete
from sqlalchemy.orm import Session

from afina import __version__
from afina.core.errors import AfinaError, Problem
from afina.core.files import atomic
from afina.core.messages import N_, say
from afina.core.paths import Home, confined, local_path
from afina.core.spec import TrainSpec
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
    until = time.monotonic() + QUICK_SECONDS
    return _listed(home, lambda path: path.stat().st_size <= QUICK_BYTES and time.monotonic() < until)


def refresh_datasets(home: Home) -> None:
    """Look through every file that has not been, whatever its size. For a quiet moment of a server."""
    _listed(home, lambda _path: True)


def _listed(home: Home, may_look: Callable[[Path], bool]) -> list[DatasetInfo]:
    counter = _counter(home)
    found = []
    with index(home) as session:
        used = rows.last_use(session)
        files = dataset_files(home)
        for path in files:
            try:
                report = _known(session, path, counter)
                if report is None and may_look(path):
                    report = _look(session, path, counter)
                found.append(_info(path, report, used.get(path.name)))
            except FileNotFoundError:
                continue
        names = [path.name for path in files]
        session.execute(delete(DatasetRow).where(DatasetRow.name.not_in(names)))
        session.commit()
    return found


def dataset_files(home: Home) -> list[Path]:
    """The files that count as datasets: not hidden, not half written, not empty folders."""
    if not home.datasets.is_dir():
        return []
    files = [path for path in home.datasets.iterdir() if path.is_file() and not path.name.startswith((".", "~"))]
    return sorted((path for path in files if path.suffix != ".part"), key=lambda path: path.name.lower())


def dataset(home: Home, name: str) -> tuple[DatasetInfo, Report]:
    """One dataset and the whole report on it. Raises AfinaError `dataset_not_found`."""
    path = dataset_path(home, name)
    report = check_file(home, path)
    with index(home) as session:
        return _info(path, report, rows.last_use(session).get(path.name)), report


def check_file(home: Home, path: Path) -> Report:
    """The report on a file that has been found; remembered for files in the datasets folder."""
    counter = _counter(home)
    if path.parent != home.datasets:
        return _check(path, counter.tokenizer)
    with index(home) as session:
        return _known(session, path, counter) or _look(session, path, counter)


def dataset_path(home: Home, name: str, *, paths: bool = False) -> Path:
    """The file of a dataset named `name`; with `paths` also any file on this machine. Raises AfinaError."""
    try:
        path = confined(home.datasets, name)
        if path.is_file():
            return path
    except AfinaError:
        if not paths:
            raise
    local = local_path(name)
    if paths and local.is_file():
        return local.absolute()
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


def check_dataset(
    home: Home, name: str, *, model: str | None = None, max_length: int | None = None, validation: str | None = None
) -> Report:
    """The report on a dataset or any file on this machine, counted with the tokenizer of `model` or the first at hand.

    Rows longer than `max_length` (else a run's own default) and rows that also stand in the dataset `validation` are
    named. Raises AfinaError `dataset_not_found`, `model_not_found`.
    """
    path = dataset_path(home, name, paths=True)
    other = dataset_path(home, validation, paths=True) if validation is not None else None
    if model is not None:
        from afina.actions.models import resolve_model
        from afina.data.template import ChatTokenizer

        return _check(path, ChatTokenizer.load(resolve_model(home, model, paths=True).folder), max_length, other)
    return _check(path, _counter(home).tokenizer, max_length, other)


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
    report = check_file(home, path) if path.stat().st_size <= QUICK_BYTES else None
    return _info(path, report, None)


def delete_dataset(home: Home, name: str) -> None:
    """Delete the file. Runs keep their own copies. Raises AfinaError `dataset_not_found`."""
    path = dataset_path(home, name)
    try:
        path.unlink()
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


def _counter(home: Home) -> Counter:
    """The starter's tokenizer, else that of the first model that has one, else none."""
    from afina.data.template import ChatTokenizer

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


def _fingerprint(path: Path, counter: Counter) -> str:
    stat = path.stat()
    return hashlib.sha256(
        f"{__version__} {LENGTH} {stat.st_size} {stat.st_mtime_ns} {counter.mark}".encode()
    ).hexdigest()


def _known(session: Session, path: Path, counter: Counter) -> Report | None:
    """The report from an earlier look, when neither the file nor the tokenizer has changed."""
    from afina.data.report import unpack

    row = session.get(DatasetRow, path.name)
    if row is None or row.fingerprint != _fingerprint(path, counter):
        return None
    try:
        return unpack(row.report)
    except (KeyError, TypeError, ValueError):
        return None


def _look(session: Session, path: Path, counter: Counter) -> Report:
    """Look through a file and remember the report."""
    mark = _fingerprint(path, counter)
    report = _check(path, counter.tokenizer)
    session.merge(DatasetRow(name=path.name, fingerprint=mark, report=report.pack()))
    session.commit()
    return report


def _check(
    path: Path, tokenizer: ChatTokenizer | None, max_length: int | None = None, validation: Path | None = None
) -> Report:
    from afina.data.checks import check

    return check(path, tokenizer=tokenizer, max_length=max_length or LENGTH, validation=validation)


def _info(path: Path, report: Report | None, used: str | None) -> DatasetInfo:
    stat = path.stat()
    info = DatasetInfo(name=path.name, size=stat.st_size, modified=stat.st_mtime, last_used=used)
    if report is not None:
        info.format, info.rows = report.format, report.rows
        info.tokens, info.answer_tokens = report.tokens, report.answer_tokens
        info.errors, info.warnings = len(report.errors), len(report.warnings)
        info.status = "broken" if report.errors else "ready"
    return info
