"""Checkpoints: everything a run needs to go on exactly where it was. Safetensors and JSON; nothing is ever pickled.

A checkpoint is written under another name and takes its own when it is complete; its manifest, written last, lists every
file with its size. Whatever has no manifest, or files that do not match it, does not exist for the reader.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from afina.core.files import read_json, sync_folder, write_json
from afina.engine import device as devices
from afina.engine.optim import Trained

FOLDER = "checkpoints"


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint on disk."""

    step: int
    folder: Path


def save(
    run_folder: Path,
    step: int,
    trained: Trained,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    device: torch.device,
) -> Saved:
    """Write `checkpoints/step-000123/`: weights, optimizer, random state, and `state` (plain JSON). Raises OSError."""
    folder = run_folder / FOLDER / f"step-{step:06d}"
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _save(trained.named(), part / "weights.safetensors")
    tensors, numbers = _flatten(optimizer)
    _save(
        {**tensors, **{f"random.{name}": value for name, value in devices.random_state(device).items()}},
        part / "optimizer.safetensors",
    )
    write_json(part / "state.json", {**state, "optimizer": numbers, "step": step})
    files = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
    write_json(part / "manifest.json", {"step": step, "files": files})
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    sync_folder(folder.parent)
    return Saved(step, folder)


def complete(run_folder: Path) -> list[Saved]:
    """The complete checkpoints of a run, oldest first."""
    found = []
    for folder in (run_folder / FOLDER).glob("step-*"):
        try:
            manifest = read_json(folder / "manifest.json")
        except (FileNotFoundError, ValueError):
            continue
        if all(
            (folder / name).is_file() and (folder / name).stat().st_size == size
            for name, size in manifest["files"].items()
        ):
            found.append(Saved(int(manifest["step"]), folder))
    return sorted(found, key=lambda saved: saved.step)


def prune(run_folder: Path, keep: int, best: int | None) -> list[str]:
    """Delete all but the newest `keep` and the best; returns the names of those deleted."""
    saved = complete(run_folder)
    old = [each for each in saved[: max(0, len(saved) - keep)] if each.step != best]
    for each in old:
        (each.folder / "manifest.json").unlink()  # first of all: half a checkpoint must not look whole
        shutil.rmtree(each.folder)
    return [each.folder.name for each in old]


def load_weights(saved: Saved, trained: Trained) -> None:
    """Put the weights back, and nothing else."""
    trained.load(_load(saved.folder / "weights.safetensors"))


def load(saved: Saved, trained: Trained, optimizer: torch.optim.Optimizer, device: torch.device) -> dict[str, Any]:
    """Put weights, optimizer and random state back; returns the `state` that was saved with them."""
    load_weights(saved, trained)
    tensors = _load(saved.folder / "optimizer.safetensors")
    state: dict[str, Any] = read_json(saved.folder / "state.json")
    _unflatten(optimizer, tensors, state.pop("optimizer"))
    random = {name.removeprefix("random."): value for name, value in tensors.items() if name.startswith("random.")}
    devices.restore_random_state(random, device)
    return state


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by name ("3.exp_avg") and the plain numbers that stand beside them."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        index, _, name = key.partition(".")
        if index.isdigit():
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _load(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  not a mapping
