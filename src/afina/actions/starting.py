"""What a start checks and writes: spec, model, datasets, names; then the folder of the run, whole or not at all."""

from __future__ import annotations

import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import psutil

from afina import __version__
from afina.actions.datasets import Found, find_dataset, report_on
from afina.actions.models import ModelRef, resolve_model
from afina.core.errors import AfinaError, Problem
from afina.core.events import Phase
from afina.core.files import write_json
from afina.core.messages import N_, say
from afina.core.parsing import parse_spec
from afina.core.paths import Home
from afina.core.quantization import missing
from afina.core.spec import TrainSpec
from afina.registry import runs as rows
from afina.runs.index import index
from afina.runs.log import EventLog

LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
DOCUMENTS = ("plain", "text", None)
"""Formats that no chat template is needed for."""
PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")

MAKING = ".new-"
"""Begins the name of a run's folder while it is written."""

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A dataset of the run: what is read for it, the person's file it came from, and how much of it is used."""

    name: str
    weight: float
    path: Path
    file: Path


@dataclass
class Prepared:
    """A run that has passed every check. `write` makes its folder."""

    spec: TrainSpec
    model: ModelRef
    parts: list[Part]
    validation: Part | None
    reports: dict[Path, Any] = field(default_factory=dict)

    def write(self, home: Home) -> Path:
        """Freeze the datasets and write the run folder under a hidden name; `publish` makes it appear, whole."""
        created = time.time()
        making = _claimed(home, created)
        run_id = making.name.removeprefix(MAKING)
        try:
            manifest = self._manifest(home, run_id, created)
        except (AfinaError, OSError):
            shutil.rmtree(making, ignore_errors=True)
            raise
        try:
            model = self.spec.model if self.model.ancestors else self.model.id  # no alias: runs are compared
            write_json(making / "spec.json", {**self.spec.resolved().model_dump(mode="json"), "model": model})
            EventLog(making).append(Phase("queued"))
            write_json(making / "manifest.json", manifest)
        except OSError as error:
            shutil.rmtree(making, ignore_errors=True)
            raise _cannot_write(error) from None
        return making

    def _manifest(self, home: Home, run_id: str, created: float) -> dict[str, Any]:
        """What the run is made of; its datasets are kept on the way."""
        from afina.data.store import freeze

        return {
            "id": run_id,
            "name": _free_name(home, self.spec.name or _made_name(self)),
            "created": created,
            "afina": __version__,
            "model": {
                "id": self.model.id,
                "folder": str(self.model.folder),
                "adapters": [str(path) for path in self.model.adapters],
                "ancestors": list(self.model.ancestors),
            },
            "datasets": [{**_frozen(freeze(home, part.path), part), "weight": part.weight} for part in self.parts],
            "validation": _frozen(freeze(home, self.validation.path), self.validation) if self.validation else None,
            "versions": versions(),
            "machine": _machine(),
        }


def _claimed(home: Home, created: float) -> Path:
    """A hidden folder whose id no other run has or gets: making it claims the id, also against runs of the same second."""
    while True:
        run_id = new_id(created)
        making = home.runs / f"{MAKING}{run_id}"
        try:
            home.runs.mkdir(parents=True, exist_ok=True)
            making.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_write(error) from None
        if not (home.runs / run_id).exists():
            return making
        making.rmdir()  # it was claimed before, and has been published meanwhile


def _cannot_write(error: OSError) -> AfinaError:
    return AfinaError(
        Problem(
            "cannot_write",
            say(N_("The run's folder cannot be written: {reason}."), reason=error.strerror or str(error)),
            say(N_("Look whether the disk has room and the home folder can be written to.")),
        ),
        kind="failed",
    )


def publish(making: Path) -> Path:
    """Give a finished run folder its name."""
    return making.rename(making.with_name(making.name.removeprefix(MAKING)))


def prepare(home: Home, spec: Any, *, paths: bool = False) -> Prepared:
    """Check everything a run needs. Raises AfinaError with all problems at once: of settings, model and datasets."""
    problems: list[Problem] = []
    parsed = spec if isinstance(spec, TrainSpec) else _tried(problems, lambda: parse_spec(spec))
    if parsed is not None and (lacking := missing(parsed.quantization)) is not None:
        problems.append(lacking)
    model_name, names, validation_name = _wanted(parsed, spec)
    model = _tried(problems, lambda: resolve_model(home, model_name, paths=paths)) if model_name else None
    reports: dict[Path, Any] = {}
    parts = [
        Part(name, weight, found.path, found.file)
        for name, weight in names
        if (found := _checked(problems, reports, home, name, "dataset", paths)) is not None
    ]
    validation = None
    if validation_name:
        held = _checked(problems, reports, home, validation_name, "validation_dataset", paths)
        validation = Part(validation_name, 1.0, held.path, held.file) if held is not None else None
    if parsed is not None and model is not None and _lacks_template(parsed, model, reports):
        problems.append(_no_template(model))
    if problems or parsed is None or model is None:
        raise AfinaError(problems)
    return Prepared(parsed, model, parts, validation, reports)


def _lacks_template(spec: TrainSpec, model: ModelRef, reports: dict[Path, Any]) -> bool:
    """Whether conversations are to be written for a model that does not say how, and nobody has chosen it."""
    from afina.data.template import has_template

    talks = any(report.format not in DOCUMENTS for report in reports.values())
    return talks and spec.chat_template == "auto" and has_template(model.folder) is False


def _no_template(model: ModelRef) -> Problem:
    message = say(N_("The model “{model}” has no chat template; choose one."), model=model.name)
    remedy = say(
        N_("ChatML is the usual choice; plain text writes “User:” and “Assistant:” and needs no special tokens.")
    )
    return Problem("template_mismatch", message, remedy, "chat_template", "auto")


def _wanted(parsed: TrainSpec | None, spec: Any) -> tuple[str | None, list[tuple[str, float]], str | None]:
    """Model, datasets and validation dataset that are asked for, as far as they can be read from a faulty spec."""
    if parsed is not None:
        return parsed.model, [(part.name, part.weight) for part in parsed.dataset], parsed.validation_dataset
    plain = spec if isinstance(spec, dict) else {}
    try:
        partly = TrainSpec.model_validate({"model": "?", "dataset": plain.get("dataset")})
        names = [(part.name, part.weight) for part in partly.dataset]
    except ValueError:
        names = []
    model, validation = plain.get("model"), plain.get("validation_dataset")
    return (
        model if isinstance(model, str) and model else None,
        names,
        validation if isinstance(validation, str) and validation else None,
    )


def _tried(problems: list[Problem], make: Callable[[], T]) -> T | None:
    """What `make` gives, or None with its problems gathered."""
    try:
        return make()
    except AfinaError as error:
        problems.extend(error.problems)
        return None


def _checked(
    problems: list[Problem], reports: dict[Path, Any], home: Home, name: str, field_name: str, paths: bool
) -> Found | None:
    """The dataset when it can be trained on; its problems are gathered otherwise."""
    try:
        found = find_dataset(home, name, paths=paths)
        report = reports[found.path] = report_on(home, found)
    except AfinaError as error:
        problems.extend(replace(problem, field=field_name) for problem in error.problems)
        return None
    for group in report.errors:
        problems.append(
            Problem(
                group.code,
                say(N_("{dataset}: {problem}"), dataset=found.file.name, problem=group.message),
                group.remedy,
                field_name,
                name,
            )
        )
    return None if report.errors else found


def new_id(created: float) -> str:
    """A sortable, readable id: the moment in UTC and four letters, 20261123-234512-x7k2."""
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(created))
    return f"{moment}-{''.join(secrets.choice(LETTERS) for _ in range(4))}"


def _made_name(prepared: Prepared) -> str:
    """A name from dataset and method: timor-leste-lora."""
    stem = re.sub(r"[^\w.-]+", "-", prepared.parts[0].file.stem).strip("-.") or "run"
    return f"{stem[:60]}-{prepared.spec.method}"


def _free_name(home: Home, wanted: str) -> str:
    """`wanted`, or with the next number behind it when a run or a model has that name."""
    with index(home) as session:
        taken = rows.names(session)
    if home.models.is_dir():
        taken |= {path.name.lower() for path in home.models.iterdir()} | {"starter"}
    name, number = wanted, 1
    while name.lower() in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def _frozen(frozen: Any, part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "sha256": frozen.sha256,
        "format": frozen.format,
        "rows": frozen.rows,
        "path": str(part.file),
    }


def versions() -> dict[str, str]:
    """The versions that decide what a run does."""
    found = {"python": platform.python_version(), "afina": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
    }
