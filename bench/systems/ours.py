"""Afina as a system under measurement: its own loop, started with the environment of its workers."""

from __future__ import annotations

from pathlib import Path

from protocol import Turns

from afina.core.events import Preflight, Step
from afina.core.parsing import parse_spec
from afina.data.examples import Example
from afina.data.readers import read
from afina.engine.loop import Job, fit


def main() -> None:
    """Train as told, a step at a time."""
    turns = Turns()
    given = turns.settings
    examples = [item for item in read(Path(given["dataset"])) if isinstance(item, Example)]
    spec = parse_spec(given["spec"]).resolved()
    job = Job(
        spec=spec,
        model_folder=Path(given["model"]),
        run_folder=Path(given["folder"]),
        train=examples,
        stop=lambda: None if turns.wait() else "last",
    )
    for event in fit(job):
        if isinstance(event, Preflight):
            turns.say(
                plan=True,
                precision=event.precision,
                path=event.path,
                shared=event.shared_prefixes,
                learned=event.answer_tokens / event.tokens,
                length=event.tokens / event.rows,
            )
        elif isinstance(event, Step):
            turns.say(
                step=event.step, seconds=event.tokens / event.tokens_per_second, tokens=event.tokens, loss=event.loss
            )
        elif event.type == "phase" and event.as_json()["name"] == "saving":
            turns.end()


if __name__ == "__main__":
    main()
