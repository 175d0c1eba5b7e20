"""What the untrained model says is computed once: the next run over the same rows says and learns exactly the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afina.core import events
from afina.engine import device as devices
from afina.engine import loop, samples
from afina.engine.before import KEPT, Before
from afina.engine.model import Network
from tests import tiny
from tests.invariant.common import job, run


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was computed of the untrained model, in order."""
    done: list[str] = []
    loss, answers = loop.validation_loss, samples.answers
    monkeypatch.setattr(loop, "validation_loss", lambda *given: done.append("loss") or loss(*given))
    monkeypatch.setattr(samples, "answers", lambda *given: done.append("answers") or answers(*given))
    return done


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long each row was that was computed forward and backward, in order."""
    done: list[int] = []
    backward = Network.backward
    monkeypatch.setattr(
        Network, "backward", lambda self, row, weight: done.append(len(row)) or backward(self, row, weight)
    )
    monkeypatch.setattr(devices, "busy", lambda _: False)
    return done


def train(model: Path, tmp_path: Path, name: str, **settings: Any) -> list[events.Event]:
    cache = tmp_path / "cache"
    return run(replace(job(model, tmp_path / name, eval_every=100, **settings), cache=cache))


def told(said: list[events.Event]) -> list[Any]:
    """Everything that does not depend on the clock."""
    steps = [(each.step, each.loss, each.grad_norm) for each in said if isinstance(each, events.Step)]
    evals = [(each.step, each.loss, each.perplexity, each.best) for each in said if isinstance(each, events.Eval)]
    return [steps, evals, [each for each in said if isinstance(each, events.Sample)]]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_second_run_says_the_same_and_computes_it_once(
    tiny_model: Path, tmp_path: Path, computed: list[str], method: str
) -> None:
    first = told(train(tiny_model, tmp_path, "first", method=method))
    alone = list(computed)
    second = told(train(tiny_model, tmp_path, "second", method=method))
    assert first == second
    assert computed[len(alone) :] == alone[2:], "all but the first loss and the first answers"
    assert alone[:2] == ["answers", "loss"]
    without = told(run(job(tiny_model, tmp_path / "third", eval_every=100, method=method)))
    assert without == first


@pytest.mark.parametrize("changed", ["model", "rows", "method", "precision", "nothing"])
def test_anything_that_matters_is_computed_again(
    tiny_model: Path, tmp_path: Path, computed: list[str], changed: str
) -> None:
    train(tiny_model, tmp_path, "first", max_steps=1)
    alone = len(computed)
    model = tiny.build_model(tmp_path / "other", seed=1) if changed == "model" else tiny_model
    settings: dict[str, Any] = {
        "rows": {"held": 5},
        "method": {"method": "full"},
        "precision": {"precision": "bfloat16"},
    }.get(changed, {})
    train(model, tmp_path, "second", max_steps=1, **settings)
    assert len(computed) - alone == (alone - 2 if changed == "nothing" else alone)


def test_the_longest_row_is_measured_once(tiny_model: Path, tmp_path: Path, rows: list[int]) -> None:
    """Whatever else is asked of it; the same is said of it, and learned."""
    plans, learned = [], []
    for name, settings in {
        "first": {},
        "again": {"learning_rate": 0.01, "max_steps": 3},
        "other method": {"method": "full", "max_steps": 3},
        "longer": {"batch_size": 5, "max_steps": 3},
    }.items():
        rows.clear()
        said = train(tiny_model, tmp_path, name, **{"max_steps": 3, "learning_rate": 0.01, **settings})
        plans.append(next(each for each in said if isinstance(each, events.Preflight)))
        learned.append([each.loss for each in said if isinstance(each, events.Step)])
        assert len(rows) - 3 == (0 if name == "again" else 2), name
    assert plans[0] == replace(plans[1], seconds=plans[0].seconds)
    assert all(plan.measured for plan in plans)
    assert learned[0] == learned[1]


@pytest.mark.parametrize("short", ["free", "limit"])
def test_where_memory_is_shorter_the_row_is_measured_again(
    tiny_model: Path, tmp_path: Path, rows: list[int], monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    train(tiny_model, tmp_path, "first", max_steps=1)
    rows.clear()
    again = replace(job(tiny_model, tmp_path / "second", eval_every=100, max_steps=1), cache=tmp_path / "cache")
    if short == "limit":
        run(replace(again, memory_limit=1 << 40))
    else:
        monkeypatch.setattr(devices, "peak_memory", lambda _: 0)
        monkeypatch.setattr(devices, "obtainable_memory", lambda _: 1000)
        run(again)
    assert len(rows) == 3


def test_what_was_measured_while_others_computed_is_not_kept(
    tiny_model: Path, tmp_path: Path, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "busy", lambda _: True)
    train(tiny_model, tmp_path, "first", max_steps=1)
    train(tiny_model, tmp_path, "second", max_steps=1)
    assert len(rows) == 6


def test_what_cannot_be_read_is_computed_again(tiny_model: Path, tmp_path: Path, computed: list[str]) -> None:
    first = told(train(tiny_model, tmp_path, "first", max_steps=1))
    alone = len(computed)
    for path in (tmp_path / "cache" / "before").iterdir():
        path.write_text('{"half": ')
    assert told(train(tiny_model, tmp_path, "second", max_steps=1)) == first
    assert len(computed) == 2 * alone


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    before = Before(tmp_path, ["model"])
    for number in range(KEPT + 20):
        before.keep_answers([samples.Prompt("?", [number])], ["!"])
    assert len(list(tmp_path.iterdir())) == KEPT
    assert before.answers([samples.Prompt("?", [KEPT + 19])]) == ["!"]
