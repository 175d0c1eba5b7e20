"""Small jobs on two-layer models, and their events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from afina.core import events
from afina.core.parsing import parse_spec
from afina.data.examples import Example, Turn
from afina.engine.loop import Job, fit

WORDS = [
    "coffee",
    "hills",
    "Dili",
    "sea",
    "market",
    "Ermera",
    "sun",
    "people",
    "bondia",
    "obrigadu",
    "capital",
    "town",
    "answer",
]


def example(number: int, length: int = 6) -> Example:
    """A question and an answer whose lengths depend on the number."""
    said = [WORDS[(number * 7 + place * 5) % len(WORDS)] for place in range(2 + (number + length) % 7)]
    return Example(
        (Turn("user", f"What about {said[0]} {number}?"), Turn("assistant", " ".join(said) + ".")), row=number + 1
    )


def job(model: Path, run_folder: Path, rows: int = 24, held: int = 4, **settings: Any) -> Job:
    """A LoRA run of a few steps unless told otherwise."""
    run_folder.mkdir(parents=True, exist_ok=True)
    chosen = {"model": "tiny", "dataset": "made", "epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "precision": "float32",
              "device": "cpu", "warmup_steps": 2, **settings}  # fmt: skip
    stop = chosen.pop("stop", None)
    adapters = chosen.pop("adapter_folders", ())
    more = {"stop": stop} if stop else {}
    return Job(
        parse_spec(chosen),
        model,
        run_folder,
        [example(number) for number in range(rows)],
        [example(number) for number in range(rows, rows + held)],
        adapter_folders=adapters,
        **more,
    )


def run(job: Job) -> list[events.Event]:
    """All events of the job."""
    return list(fit(job))


def until(job: Job, last_step: int) -> Iterator[events.Event]:
    """Events up to and with the step `last_step`; then the run is dropped, as if it had been killed."""
    for event in fit(job):
        yield event
        if isinstance(event, events.Step) and event.step == last_step:
            return


def losses(said: Sequence[events.Event]) -> list[float]:
    """The loss of every step."""
    return [event.loss for event in said if isinstance(event, events.Step)]


def of_type(said: Sequence[events.Event], kind: type[events.Event]) -> list[Any]:
    """The events of one type."""
    return [event for event in said if isinstance(event, kind)]
