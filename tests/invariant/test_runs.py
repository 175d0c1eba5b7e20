"""What must hold of whole runs: accumulation, repetition, resuming, the last step, losses that are no numbers."""

from __future__ import annotations

import errno
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from afina.core import events
from afina.core.errors import AfinaError
from afina.core.files import read_json
from afina.engine import checkpoint, loop, model, optim
from afina.engine.loop import fit
from tests.invariant.common import job, losses, of_type, run, until


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_accumulation_is_only_a_way_to_fit(tiny_model: Path, tmp_path: Path) -> None:
    one = run(job(tiny_model, tmp_path / "a", rows=40, epochs=4, batch_size=8, gradient_accumulation_steps=1))
    many = run(job(tiny_model, tmp_path / "b", rows=40, epochs=4, batch_size=1, gradient_accumulation_steps=8))
    assert len(losses(one)) == 20
    assert losses(one) == pytest.approx(losses(many), abs=1e-5)
    wanted, given = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    for name, tensor in wanted.items():
        assert (given[name] - tensor).norm() <= 1e-4 * tensor.norm()


def test_rows_in_memory_change_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step laid out in one row or in many is the same step: token-weighted, never a mean of means."""
    whole = run(job(tiny_model, tmp_path / "a", rows=24, batch_size=8, epochs=2))
    monkeypatch.setattr("afina.engine.memory.MOST_TOKENS", {"cpu": 1, "mps": 1, "cuda": 1})
    pieces = run(job(tiny_model, tmp_path / "b", rows=24, batch_size=8, epochs=2))
    assert losses(whole) == pytest.approx(losses(pieces), abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_way_learns_the_same(
    family_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Ten steps of each way of computing give the same losses: what the optimizer changed is used in the next step."""
    own, found = model.Network.__init__, {}
    for way in ("fast", "packed", "reference"):
        monkeypatch.setattr(model.Network, "__init__", lambda network, given, way=way: own(network, given, best=way))
        said = run(
            job(family_model, tmp_path / way, rows=16, epochs=3, method=method, batch_size=5, learning_rate=3e-3)
        )
        assert of_type(said, events.Preflight)[0].path == way
        found[way] = losses(said)
    assert len(found["fast"]) == 12
    assert found["fast"][0] - found["fast"][-1] > 0.01
    assert found["fast"] == pytest.approx(found["reference"], rel=1e-4)
    assert found["packed"] == pytest.approx(found["reference"], rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_same_seed_same_curve(tiny_model: Path, tmp_path: Path, method: str) -> None:
    settings: dict[str, Any] = {"method": method, "epochs": 2, "lora_dropout": 0.1}
    first = run(job(tiny_model, tmp_path / "a", **settings))
    second = run(job(tiny_model, tmp_path / "b", **settings))
    other = run(job(tiny_model, tmp_path / "c", **settings, seed=7))
    assert losses(first) == losses(second)
    assert [event.loss for event in of_type(first, events.Eval)] == [
        event.loss for event in of_type(second, events.Eval)
    ]
    assert losses(first) != losses(other)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora", "lora_dropout": 0.1},
        {"method": "full", "optimizer": "adafactor", "schedule": "cosine"},
        {"method": "full", "optimizer": "sgd", "precision": "bfloat16"},
        {"method": "full", "optimizer": "adamw", "precision": "bfloat16"},
        {"method": "lora", "optimizer": "adamw", "precision": "bfloat16", "schedule": "inverse_sqrt"},
    ],
)
def test_resume_is_never_having_stopped(tiny_model: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {"epochs": 2, "save_every": 5, "eval_every": 3, **settings}
    whole = run(job(tiny_model, tmp_path / "whole", **settings))
    killed = list(until(job(tiny_model, tmp_path / "killed", **settings), 7))
    again = run(job(tiny_model, tmp_path / "killed", **settings))
    steps = [event.step for event in of_type(again, events.Step)]
    assert steps == list(range(steps[0], 13))
    assert steps[0] <= 8
    joined = losses(killed)[: steps[0] - 1] + losses(again)
    assert joined == losses(whole)
    ends = [of_type(said, events.Finished)[0] for said in (whole, again)]
    assert ends[0].train_loss == ends[1].train_loss
    assert ends[0].validation_loss == ends[1].validation_loss
    assert ends[0].best_step == ends[1].best_step
    name = "adapter/adapter_model.safetensors" if settings["method"] == "lora" else "model/model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_resumed_with_less_memory_it_learns_the_same(tiny_model: Path, tmp_path: Path) -> None:
    """What the supervisor does after the system ended a run: the same checkpoint, next to nothing to plan with."""
    settings: dict[str, Any] = {"save_every": 2, "batch_size": 8, "rows": 48}
    whole = run(job(tiny_model, tmp_path / "whole", **settings))
    list(until(job(tiny_model, tmp_path / "part", **settings), 3))
    again = run(replace(job(tiny_model, tmp_path / "part", **settings), memory_limit=1))
    first = of_type(again, events.Step)[0].step
    assert first == 3
    assert losses(again) == pytest.approx(losses(whole)[first - 1 :], abs=1e-5)
    states = [read_json(tmp_path / name / "checkpoints" / "step-000006" / "state.json") for name in ("whole", "part")]
    assert [state["checkpointing"] for state in states] == [False, True]
    assert states[1]["tokens_per_row"] < states[0]["tokens_per_row"]


def test_the_preflight_is_measured_and_changes_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"lora_dropout": 0.1, "save_every": 30, "epochs": 10}
    said = run(job(tiny_model, tmp_path / "with", **settings))
    plan = of_type(said, events.Preflight)[0]
    assert plan.measured
    assert plan.memory > 50_000_000
    assert 0 < plan.seconds < 60
    assert 0 < plan.step_seconds < 10
    assert said.index(plan) < said.index(of_type(said, events.Sample)[0])
    monkeypatch.setattr(loop.Run, "_preflight", lambda _: iter(()))
    without = run(job(tiny_model, tmp_path / "without", **settings))
    assert losses(said) == losses(without)


def test_a_stopped_run_resumes_too(tiny_model: Path, tmp_path: Path) -> None:
    seen = iter([None, None, None, "last"])
    whole = run(job(tiny_model, tmp_path / "whole", eval_every=2))
    stopped = run(job(tiny_model, tmp_path / "part", eval_every=2, stop=lambda: next(seen)))
    last = of_type(stopped, events.Stopped)[0]
    assert (last.step, last.kept, last.output) == (3, "last", "adapter")
    again = run(job(tiny_model, tmp_path / "part", eval_every=2))
    assert losses(stopped) + losses(again) == losses(whole)


def test_half_a_checkpoint_is_none(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"save_every": 2, "eval_every": 2, "keep": 5}
    whole = run(job(tiny_model, tmp_path / "whole", **settings))
    list(until(job(tiny_model, tmp_path / "cut", **settings), 5))
    folders = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))
    assert [folder.name for folder in folders] == ["step-000002", "step-000004"]
    with (folders[-1] / "optimizer.safetensors").open("r+b") as file:
        file.truncate(100)
    again = run(job(tiny_model, tmp_path / "cut", **settings))
    assert of_type(again, events.Step)[0].step == 3
    assert losses(again) == losses(whole)[2:]


def test_a_checkpoint_is_spoken_of_when_it_is_complete(tiny_model: Path, tmp_path: Path) -> None:
    spoken = []
    for event in fit(job(tiny_model, tmp_path, save_every=1, eval_every=3, keep=2)):
        if isinstance(event, events.Checkpoint):
            spoken.append(event.step)
            there = {saved.step: saved.folder for saved in checkpoint.complete(tmp_path)}
            assert there[event.step] == tmp_path / event.path
            assert not any((tmp_path / name).exists() for name in event.removed)
    assert spoken == list(range(1, 7))


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX")
def test_a_checkpoint_that_cannot_be_written_ends_the_run(tiny_model: Path, tmp_path: Path) -> None:
    """The system refuses in the thread that writes; the loop gets the error, with its number."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            run(job(tiny_model, tmp_path, save_every=2, eval_every=6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not checkpoint.complete(tmp_path)


def test_the_last_incomplete_step_is_used(tiny_model: Path, tmp_path: Path) -> None:
    """25 rows in steps of 4: the seventh step has one row, and its loss is that row's own."""
    said = run(job(tiny_model, tmp_path / "a", rows=25, held=0, batch_size=2, gradient_accumulation_steps=2))
    plan = of_type(said, events.Preflight)[0]
    steps = of_type(said, events.Step)
    assert (plan.rows, plan.steps_per_epoch, plan.total_steps, len(steps)) == (25, 7, 7, 7)
    assert sum(step.tokens for step in steps) == plan.tokens
    assert steps[-1].tokens < plan.tokens / 10
    assert steps[-1].loss > 0


def test_a_loss_that_is_no_number_stops_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"method": "full", "optimizer": "sgd", "epochs": 4, "save_every": 2, "eval_every": 2,
                                "max_grad_norm": 0, "warmup_steps": 0}  # fmt: skip
    said: list[events.Event] = []

    def train() -> None:
        for event in fit(job(tiny_model, tmp_path / "a", **settings, learning_rate=1.0)):
            said.append(event)
            if isinstance(event, events.Step) and event.step == 5:
                overflow(monkeypatch)

    with pytest.raises(AfinaError) as caught:
        train()
    assert caught.value.code == "loss_not_finite"
    assert caught.value.problems[0].remedy is not None
    assert len(losses(said)) == 5
    kept = checkpoint.complete(tmp_path / "a")
    assert kept[-1].step == 4
    assert all(tensor.isfinite().all() for tensor in load_file(kept[-1].folder / "weights.safetensors").values())


def overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every gradient is infinite."""
    own = optim.norm

    def norm(trained: optim.Trained) -> float:
        for gradient in trained.gradients():
            gradient.fill_(float("inf"))
        return own(trained)

    monkeypatch.setattr(optim, "norm", norm)


def test_keep_and_best(tiny_model: Path, tmp_path: Path) -> None:
    said = run(job(tiny_model, tmp_path / "a", epochs=3, save_every=1, eval_every=1, keep=2, learning_rate=0.05))
    best = min((event for event in of_type(said, events.Eval) if event.step), key=lambda event: event.loss).step
    kept = sorted(path.parent.name for path in (tmp_path / "a" / "checkpoints").glob("*/manifest.json"))
    assert kept == sorted({"step-000017", "step-000018", f"step-{best:06d}"})
    removed = [name for event in of_type(said, events.Checkpoint) for name in event.removed]
    assert len(removed) == 18 - len(kept)


def test_stop_with_the_best(tiny_model: Path, tmp_path: Path) -> None:
    answers = iter([None] * 10 + ["best"])
    said = run(job(tiny_model, tmp_path / "a", epochs=4, eval_every=2, learning_rate=0.2, stop=lambda: next(answers)))
    end = of_type(said, events.Stopped)[0]
    evals = {event.step: event.loss for event in of_type(said, events.Eval) if event.step}
    best = min(evals, key=lambda step: evals[step])
    assert (end.kept, end.validation_loss) == ("best", evals[best])
    saved = load_file(tmp_path / "a" / "checkpoints" / f"step-{best:06d}" / "weights.safetensors")
    written = adapter(tmp_path / "a")
    assert any(torch.equal(tensor, value) for tensor in saved.values() for value in written.values())
    assert len(saved) == len(written)
    for name, tensor in saved.items():
        match = next(
            value for key, value in written.items() if key.endswith(name.replace(".default", "").partition("model.")[2])
        )
        assert torch.equal(tensor, match)


def test_early_stopping_keeps_the_best(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"epochs": 30, "eval_every": 2, "learning_rate": 0.1, "early_stopping_patience": 3}
    said = run(job(tiny_model, tmp_path / "a", **settings))
    end = of_type(said, events.Finished)[0]
    evals = of_type(said, events.Eval)
    assert end.step < of_type(said, events.Preflight)[0].total_steps
    assert end.validation_loss == min(event.loss for event in evals)
    assert "stopped_early" in [event.code for event in of_type(said, events.Warn)]
