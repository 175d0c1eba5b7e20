"""What a run is asked to do: the settings, what it learns from, and where everything lies. Knows nothing of how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from afina.core.spec import TrainSpec
from afina.data.examples import Example
from afina.engine.tokens import Source, everything

Keep = Literal["last", "best"]


def _never() -> Keep | None:
    return None


@dataclass(frozen=True)
class Job:
    """What to train, from what, and where to.

    adapter_folders: LoRA results to merge into the model first, in order; train, validation: examples, or in their place
    sources: datasets that are read as they are needed; stop: asked after every step; created: the date that chat templates
    may print; memory_limit: bytes to plan with, None for what is free; cache: a folder for what need not be computed twice,
    None for nothing; notes: kept beside the result.
    """

    spec: TrainSpec
    model_folder: Path
    run_folder: Path
    train: Sequence[Example] = ()
    validation: Sequence[Example] = ()
    adapter_folders: Sequence[Path] = ()
    sources: Sequence[Source] = ()
    stop: Callable[[], Keep | None] = _never
    created: datetime | None = None
    memory_limit: int | None = None
    cache: Path | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def all_sources(self) -> Sequence[Source]:
        """The datasets, however they were given."""
        return self.sources or [Source(self.train), Source(self.validation, held=everything)]
