"""Checkpoints: everything a run needs to go on exactly where it was. Safetensors and JSON; nothing is ever pickled.

A checkpoint is written under another name and takes its own when it is complete; its manifest, written last, lists every
file with its size. Whatever has no manifest, or files that do not match it, does not exist for the reader. Writing is done
by a thread while training goes on, from the trained tensors themselves.
"""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from afina.core.files import read_json, sync_file, sync_folder, write_json
from afina.engine import device as devices
from afina.engine import tensorfile
from afina.engine.optim import Trained

FOLDER = "checkpoints"


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint on disk."""

    step: int
    folder: Path
    removed: tuple[str, ...] = ()
    """Names of those that were deleted for it."""


@dataclass(frozen=True)
class _Snapshot:
    """What one checkpoint holds, and which others are kept beside it."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    keep: int
    best: int | None


class Writer:
    """Writes the checkpoints of a run beside its loop, one at a time.

    `begin` starts a thread that reads the trained tensors where they are and writes them past the system's cache. Before they change, the
    loop calls `release`: what has not been written by then goes through the cache, as fast as a copy would be made.
    """

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / FOLDER
        # the thread is there from the start: one that finds no memory to begin in is waited for without end (CPython 3.11)
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pool.submit(int).result()
        self._writing: Future[None] | None = None
        self._hurried, self._released = threading.Event(), threading.Event()
        self._saved: Saved | None = None
        self._error: Exception | None = None

    def begin(
        self,
        step: int,
        trained: Trained,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        device: torch.device,
        keep: int,
        best: int | None,
    ) -> None:
        """Start `checkpoints/step-000123/`: weights, optimizer, random state, and `state` (plain JSON). When it is complete, all but the
        newest `keep` and the `best` are deleted.

        The one before must have been asked for with `finish`.
        """
        tensors, numbers = _flatten(optimizer)
        random = {f"random.{name}": value for name, value in devices.random_state(device).items()}
        snapshot = _Snapshot(
            step, trained.named(), {**tensors, **random}, {**state, "optimizer": numbers, "step": step}, keep, best
        )
        self._hurried.clear()
        self._released.clear()
        self._writing = self._pool.submit(self._write, snapshot)

    def release(self) -> None:
        """Return when the trained tensors and the optimizer's may change; to be called before they do."""
        if self._writing is not None:
            self._hurried.set()
            self._released.wait()

    def finish(self, wait: bool) -> Saved | None:
        """The checkpoint begun last, once, when it is complete on disk. Raises what it failed with."""
        if self._writing is not None:
            if not (wait or self._writing.done()):
                return None
            self._writing.result()
            self._writing = None
        saved, error, self._saved, self._error = self._saved, self._error, None, None
        if error is not None:
            raise error
        return saved

    def close(self) -> None:
        """Wait for what is being written, and say nothing of it."""
        self._pool.shutdown()

    def _write(self, snapshot: _Snapshot) -> None:
        try:
            self._saved = self._written(self._folder / f"step-{snapshot.step:06d}", snapshot)
        except (
            OSError,
            MemoryError,
            RuntimeError,
            SystemError,
        ) as error:  # the last where memory ends inside of libraries
            self._error = error
        finally:
            self._released.set()

    def _written(self, folder: Path, snapshot: _Snapshot) -> Saved:
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        files = {part / "weights.safetensors": snapshot.weights, part / "optimizer.safetensors": snapshot.optimizer}
        for path, tensors in files.items():
            tensorfile.put(path, tensors, hurried=self._hurried.is_set)
        self._released.set()
        for path in files:
            sync_file(path)
        write_json(part / "state.json", snapshot.state)
        sizes = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
        write_json(part / "manifest.json", {"step": snapshot.step, "files": sizes})
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        sync_folder(folder.parent)
        return Saved(snapshot.step, folder, tuple(prune(folder.parent.parent, snapshot.keep, snapshot.best)))


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


def newest_state(run_folder: Path) -> dict[str, Any]:
    """The `state` that the newest complete checkpoint holds, {} where there is none."""
    found = complete(run_folder)
    return dict(read_json(found[-1].folder / "state.json")) if found else {}


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


def _load(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  not a mapping
