"""What events add up to."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from afina.runs.digest import Digest


def fold(*events: dict[str, Any]) -> Digest:
    digest = Digest()
    for event in events:
        digest.fold(event)
    return Digest.load(digest.as_json())


def step(number: int, time: float = 0.0, loss: float = 1.0) -> dict[str, Any]:
    return {
        "type": "step",
        "time": time,
        "step": number,
        "total_steps": 9,
        "loss": loss,
        "tokens_per_second": 10.0,
        "tokens": 20,
    }


def phase(name: str, time: float) -> dict[str, Any]:
    return {"type": "phase", "name": name, "time": time}


@given(st.lists(st.floats(0, 10), max_size=400))
def test_the_sparkline_is_short_and_keeps_the_mean(losses: list[float]) -> None:
    digest = fold(*(step(number, loss=loss) for number, loss in enumerate(losses, 1)))
    assert len(digest.sparkline) <= 40
    if losses:
        assert min(losses) - 1e-3 <= min(digest.sparkline)
        assert max(digest.sparkline) <= max(losses) + 1e-3
        assert digest.train_loss == losses[-1]


def test_a_death_noticed_late_is_not_counted_as_work() -> None:
    digest = fold(
        phase("queued", 0), phase("starting", 10), step(1, 20), {"type": "failed", "code": "vanished", "time": 9999}
    )
    assert (digest.status, digest.seconds, digest.ended) == ("failed", 10, 20)


def test_work_of_a_resumed_run_adds_up_and_repeated_steps_count_once() -> None:
    digest = fold(
        phase("queued", 0),
        phase("starting", 10),
        *(step(number, 10 + number) for number in (1, 2, 3)),
        {"type": "failed", "code": "killed", "time": 14},
        phase("queued", 100),
        phase("starting", 110),
        step(3, 111, 0.5),
        {"type": "finished", "time": 120, "step": 9, "train_loss": 0.4, "output": "adapter"},
    )
    assert (digest.status, digest.seconds, digest.started, digest.ended) == ("succeeded", 13, 10, 120)
    assert digest.sparkline == [1.0, 1.0, 0.5]
    assert (digest.train_loss, digest.output, digest.step) == (0.4, "adapter", 9)


def test_a_queued_run_forgets_how_it_ended_before() -> None:
    digest = fold(
        phase("starting", 1), {"type": "stopped", "step": 2, "time": 3, "output": "adapter"}, phase("queued", 5)
    )
    assert (digest.status, digest.output, digest.phase) == (None, None, "queued")
