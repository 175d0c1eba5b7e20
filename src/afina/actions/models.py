"""Models: listing, naming, adding and deleting. Tuned models are the results of runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from afina.core.errors import AfinaError, Problem
from afina.core.events import ACTIVE
from afina.core.files import read_json
from afina.core.messages import N_, Message, say
from afina.core.paths import Home, confined, local_path
from afina.registry import models as bases
from afina.registry import runs as rows
from afina.registry.records import ModelInfo
from afina.registry.tables import RunRow
from afina.runs import adding
from afina.runs.index import index
from afina.runs.view import run_folder, standing


@dataclass(frozen=True)
class ModelRef:
    """Where a model lies: the folder of the base (or fully tuned) model, then the LoRA adapters to merge, in order.

    ancestors: ids of the runs that went into it, oldest first; chat_template: as in the settings of the last of them.
    """

    id: str
    name: str
    folder: Path
    adapters: tuple[Path, ...] = ()
    ancestors: tuple[str, ...] = ()
    chat_template: str = "auto"

    @property
    def adapter(self) -> Path | None:
        """The last adapter, None for a model that is whole."""
        return self.adapters[-1] if self.adapters else None


def list_models(home: Home) -> list[ModelInfo]:
    """Base models (with those being added), then the results of runs, newest first."""
    with index(home) as session:
        base = bases.base_models(home, session)
        tuned = [info for row in rows.all_runs(session) if (info := _tuned(home, row)) is not None]
    there = {info.id for info in base if info.status != "broken"}
    return [info for info in adding.list_adding(home) if info.id not in there] + base + tuned


def get_model(home: Home, ref: str) -> ModelInfo:
    """One model by id, name, alias or run. Raises AfinaError `model_not_found`."""
    found = list_models(home)
    for same in (lambda model: ref == model.id, lambda model: ref in model.aliases, lambda model: ref == model.name):
        for info in found:
            if same(info):
                return info
    raise _not_found(ref)


def resolve_model(home: Home, ref: str, *, paths: bool = False) -> ModelRef:
    """Where the model `ref` lies: a base model's name, `starter`, a run's id or name, or with `paths` a local folder.

    Raises AfinaError `model_not_found`, `model_not_ready`.
    """
    name = bases.STARTER if ref == bases.STARTER_ALIAS else ref
    folder = _base_folder(home, name)
    if folder is not None:
        return _whole(name, folder)
    with index(home) as session:
        try:
            row = rows.find(session, ref)
        except AfinaError as error:
            if error.code != "run_not_found":
                raise
        else:
            return _result(home, row)
    local = local_path(ref)
    if paths and local.is_dir():
        return _whole(str(local.absolute()), local.absolute())
    raise _not_found(ref)


def add_model(
    home: Home, source: str, name: str | None = None, on_progress: Callable[[float, Message], None] | None = None
) -> ModelInfo:
    """Begin to add a base model from `starter`, a local folder, a GGUF file or `hub:owner/name[@revision]`; it goes on in a process of its own.

    Returns at once with status `adding`; with `on_progress` waits for the end and calls it with the share done and a
    word. Raises AfinaError `source_not_found`, `source_unknown`, `model_exists`, `bad_name`, where the hub is asked what
    `runs.hub.look` raises, and what goes wrong later.
    """
    return adding.add(home.create(), source, name, on_progress)


def delete_model(home: Home, ref: str) -> None:
    """Delete a base model's folder, or the run that a tuned model came from.

    Raises AfinaError `model_not_found`, `model_in_use` when runs are waiting for it or results need it.
    """
    from afina.actions.runs import delete_run

    info = get_model(home, ref)
    if info.run is not None:
        delete_run(home, info.run)
        return
    with index(home) as session:
        users = [row.name for row in rows.all_runs(session) if _needs(home, row, info.id)]
    if users:
        raise AfinaError(
            Problem(
                "model_in_use",
                say(N_("The model “{model}” is needed by: {runs}."), model=info.name, runs=", ".join(users[:5])),
                say(N_("Delete those runs first.")),
                "model",
                info.id,
            ),
            kind="conflict",
        )
    if info.status == "adding":
        adding.cancel(home, info.id)
    folder = confined(home.models, info.id)
    trash = folder.with_name(f".trash-{folder.name}")
    if folder.exists():
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
    adding.forget(home, info.id)


def _needs(home: Home, row: RunRow, model: str) -> bool:
    """Whether a run waits for, computes with or only works together with the base model."""
    status, output = _standing(home, row)
    if status not in ACTIVE and status != "queued" and (row.method != "lora" or not output):
        return False
    try:
        folder = read_json(run_folder(home, row.id) / "manifest.json")["model"]["folder"]
    except (OSError, ValueError, KeyError):
        return False
    return Path(folder) == home.models / model


def _standing(home: Home, row: RunRow) -> tuple[str, Path | None]:
    """The status of a run as its log stands now, and its result when there is one on disk."""
    status, digest = standing(home, row)
    folder = run_folder(home, row.id) / digest.output if digest.output else None
    return status, folder if folder is not None and folder.is_dir() else None


def _base_folder(home: Home, name: str) -> Path | None:
    try:
        folder = confined(home.models, name)
    except AfinaError:
        return None
    return folder if folder.is_dir() else None


def _whole(model_id: str, folder: Path) -> ModelRef:
    info = bases.describe(folder)
    if info.problem is not None:
        raise AfinaError(
            Problem(
                info.problem.code,
                info.problem.said or say(N_("The model cannot be used.")),
                info.problem.said_remedy,
                "model",
                model_id,
            )
        )
    return ModelRef(model_id, folder.name, folder)


def _result(home: Home, row: RunRow) -> ModelRef:
    """The model that a run made."""
    _, output = _standing(home, row)
    if output is None:
        raise AfinaError(
            Problem(
                "model_not_ready",
                say(N_("The run “{run}” has no finished model."), run=row.name),
                say(N_("Wait until it has ended, or choose another model.")),
                "model",
                row.id,
            )
        )
    ancestors = (*row.ancestors, row.id)
    template = str(row.spec.get("chat_template", "auto"))
    if row.method == "full":
        return ModelRef(row.id, row.name, output, (), ancestors, template)
    origin = read_json(run_folder(home, row.id) / "manifest.json")["model"]
    adapters = (*(_here(home.runs, path, 2) for path in origin["adapters"]), output)
    return ModelRef(row.id, row.name, _here(home.models, origin["folder"], 1), adapters, ancestors, template)


def _here(folder: Path, recorded: str, parts: int) -> Path:
    """A path from a manifest; when the home has been moved since, the same file in the present one."""
    path = Path(recorded)
    moved = folder.joinpath(*path.parts[-parts:])
    return moved if not path.exists() and moved.exists() else path


def _tuned(home: Home, row: RunRow) -> ModelInfo | None:
    status, output = _standing(home, row)
    if output is None or status in ACTIVE or status == "queued":
        return None
    origin = read_json(run_folder(home, row.id) / "manifest.json")["model"]
    whole = bases.describe(output if row.method == "full" else _here(home.models, origin["folder"], 1))
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    return whole.model_copy(
        update={
            "id": row.id,
            "name": row.name,
            "aliases": [],
            "kind": row.method,
            "size": size,
            "source": None,
            "parent": row.model,
            "run": row.id,
            "dataset": [part["name"] for part in row.dataset],
            "created": row.ended or row.created,
        }
    )


def _not_found(ref: str) -> AfinaError:
    return AfinaError(
        Problem(
            "model_not_found",
            say(N_("There is no model “{model}”."), model=ref),
            say(N_("The list of models shows their names; a new one is added there.")),
            "model",
            ref,
        ),
        kind="not_found",
    )
