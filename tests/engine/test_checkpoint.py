"""Checkpoints are written beside the loop from what is trained; what the loop changes meanwhile does not get into them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from afina.engine import checkpoint, optim, tensorfile
from afina.engine import device as devices

CPU = torch.device("cpu")


def trained(seed: int = 0) -> optim.Trained:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"wide": (400, 300), "vector": (7,), "one": ()}
    named = [(name, torch.nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in shapes.items()]
    return optim.Trained(named)


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index} {name}": value.clone() for index in state for name, value in state[index].items()}


def change(given: optim.Trained, optimizer: torch.optim.Optimizer) -> None:
    for master in given.masters:
        master.grad = torch.full_like(master, 3.0)
    optim.step(optimizer, given)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
@pytest.mark.parametrize("memory", ["enough", "not for all", "none"])
def test_what_is_trained_may_change_as_soon_as_it_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, memory: str
) -> None:
    """With 50 numbers at a time the loop is back long before all is written; without memory for a copy it waits."""
    monkeypatch.setattr(tensorfile, "AT_ONCE", 50)
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.0)
    if memory != "enough":
        free = 0 if memory == "none" else 4 * 300_000  # a quarter of it: less than half of the weights
        monkeypatch.setattr(devices, "free_memory", lambda device: free)
    given = trained()
    moved = optim.build(optimizer, given, 0.1, 0.0)
    change(given, moved)
    writer = checkpoint.Writer(tmp_path)
    kept = []
    for step in (1, 2, 3):
        kept.append([master.detach().clone() for master in given.masters])
        state = state_of(moved)
        writer.begin(step, given, moved, {"said": step}, CPU)
        writer.release()
        change(given, moved)
        saved = writer.finish(wait=True)
        assert saved == checkpoint.Saved(step, tmp_path / "checkpoints" / f"step-00000{step}")
        other = trained(1)
        built = optim.build(optimizer, other, 0.1, 0.0)
        assert checkpoint.load(saved, other, built, CPU) == {"said": step, "step": step}
        assert all(torch.equal(one, two) for one, two in zip(other.masters, kept[-1], strict=True))
        found = state_of(built)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)
    writer.close()
    assert not torch.equal(kept[0][0], kept[1][0])


def test_a_copy_that_finds_no_memory_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "AT_ONCE", 50)
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.0)
    tried = []

    def full(snapshot: object) -> None:
        tried.append(snapshot)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(checkpoint._Snapshot, "copy", full)
    given = trained()
    moved = optim.build("adamw", given, 0.1, 0.0)
    change(given, moved)
    before = [master.detach().clone() for master in given.masters]
    writer = checkpoint.Writer(tmp_path)
    writer.begin(1, given, moved, {}, CPU)
    writer.release()
    change(given, moved)
    saved = writer.finish(wait=True)
    writer.close()
    assert len(tried) == 1
    assert saved is not None
    checkpoint.load_weights(saved, given)
    assert all(torch.equal(one, two) for one, two in zip(given.masters, before, strict=True))


@pytest.mark.parametrize(("patience", "copies"), [(60.0, 0), (0.0, 1)])
def test_copied_once_and_only_when_writing_falls_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, copies: int
) -> None:
    monkeypatch.setattr(tensorfile, "AT_ONCE", 20)
    monkeypatch.setattr(checkpoint, "PATIENCE", patience)
    own, made = checkpoint._Snapshot.copy, []

    def counted(snapshot: checkpoint._Snapshot) -> None:
        made.append(snapshot.bytes())
        own(snapshot)

    monkeypatch.setattr(checkpoint._Snapshot, "copy", counted)
    given = trained()
    moved = optim.build("adamw", given, 0.1, 0.0)
    writer = checkpoint.Writer(tmp_path)
    writer.begin(1, given, moved, {}, CPU)
    for _ in range(5):
        writer.release()
        change(given, moved)
    assert writer.finish(wait=True)
    writer.close()
    assert len(made) == copies


def test_what_fails_releases_the_loop(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    given = trained()
    writer = checkpoint.Writer(tmp_path)
    writer.begin(1, given, optim.build("sgd", given, 0.1, 0.0), {}, CPU)
    writer.release()
    with pytest.raises(OSError, match="checkpoints"):
        writer.finish(wait=True)
    assert writer.finish(wait=True) is None
    writer.release()
    writer.close()


@pytest.mark.skipif(sys.platform == "win32", reason="asks the system how much was resident")
def test_a_checkpoint_that_is_waited_for_takes_no_second_copy(tmp_path: Path) -> None:
    code = """if True:
        import resource, sys, torch
        from pathlib import Path
        from afina.engine import checkpoint, optim
        given = optim.Trained([(str(n), torch.nn.Parameter(torch.ones(5_000_000))) for n in range(15)])
        moved = optim.build("sgd", given, 0.1, 0.0)
        writer = checkpoint.Writer(Path(sys.argv[1]))
        most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = most()
        writer.begin(1, given, moved, {}, torch.device("cpu"))
        assert writer.finish(wait=True)
        print((most() - before) / (1 if sys.platform == "darwin" else 1024))
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60, "MB, of 300 that are written"
