"""Checkpoints are written beside the loop from what is trained; what the loop changes meanwhile does not get into them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from afina.engine import checkpoint, optim, straight, tensorfile
from afina.engine.straight import STRAIGHT

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
@pytest.mark.parametrize("able", [True, False])
def test_what_is_trained_may_change_as_soon_as_it_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, able: bool
) -> None:
    """With 50 numbers at a time the loop is back long before all is written."""
    monkeypatch.setattr(tensorfile, "AT_ONCE", 50)
    if not able:
        monkeypatch.setattr("afina.engine.straight.STRAIGHT", 0)
    given = trained()
    moved = optim.build(optimizer, given, 0.1, 0.0)
    change(given, moved)
    writer = checkpoint.Writer(tmp_path)
    kept = []
    for step in (1, 2, 3):
        kept.append([master.detach().clone() for master in given.masters])
        state = state_of(moved)
        writer.begin(step, given, moved, {"said": step}, CPU, keep=3, best=None)
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


def test_a_slow_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to the disk itself takes its time; from where the loop waits on, the rest goes through the cache."""
    sound, ways = os.write, []

    def slow(file: int, data: memoryview) -> int:
        straight = bool(fcntl.fcntl(file, fcntl.F_GETFL) & STRAIGHT)
        ways.append(straight)
        if straight:
            begun.set()
            asked.wait(60)
        return sound(file, data)

    fcntl = pytest.importorskip("fcntl")
    if not STRAIGHT:
        pytest.skip("no files are written straight here")
    begun, asked = threading.Event(), threading.Event()
    monkeypatch.setattr(straight.os, "write", slow)
    given = optim.Trained([(str(number), torch.nn.Parameter(torch.ones(400_000))) for number in range(20)])
    writer = checkpoint.Writer(tmp_path)
    writer.begin(1, given, optim.build("sgd", given, 0.1, 0.0), {}, CPU, keep=1, best=None)
    if not begun.wait(10):
        pytest.skip("this file system writes by its cache only")
    threading.Timer(0.2, asked.set).start()
    writer.release()
    assert writer.finish(wait=True)
    writer.close()
    assert ways.count(True) == 1
    assert ways.count(False) > 5


def test_those_that_are_superfluous_are_deleted(tmp_path: Path) -> None:
    given = trained()
    moved = optim.build("sgd", given, 0.1, 0.0)
    writer = checkpoint.Writer(tmp_path)
    removed = []
    for step in (1, 2, 3, 4):
        writer.begin(step, given, moved, {}, CPU, keep=1, best=2)
        saved = writer.finish(wait=True)
        assert saved is not None
        removed.append(saved.removed)
    writer.close()
    assert removed == [(), ("step-000001",), (), ("step-000003",)]
    assert [saved.step for saved in checkpoint.complete(tmp_path)] == [2, 4]


def test_what_fails_releases_the_loop(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    given = trained()
    writer = checkpoint.Writer(tmp_path)
    writer.begin(1, given, optim.build("sgd", given, 0.1, 0.0), {}, CPU, keep=1, best=None)
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
        writer.begin(1, given, moved, {}, torch.device("cpu"), keep=1, best=None)
        assert writer.finish(wait=True)
        print((most() - before) / (1 if sys.platform == "darwin" else 1024))
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60, "MB, of 300 that are written"
