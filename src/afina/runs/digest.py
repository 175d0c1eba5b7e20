"""What the events of a run add up to, folded one by one, so that nobody reads a long log twice."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

POINTS = 40
TERMINAL = {"finished": "succeeded", "stopped": "stopped", "failed": "failed"}


@dataclass
class Digest:
    """The state of a run after some of its events. Times are seconds since 1970."""

    phase: str | None = None
    queued: float | None = None
    started: float | None = None
    ended: float | None = None
    stretch: float | None = None
    """When the present stretch of work began; a resumed run has several."""
    spent: float = 0.0
    """Seconds of the stretches that are over."""
    last: float | None = None
    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    memory: int | None = None
    speeds: list[float] = field(default_factory=list)
    """The last speeds measured, at most 20."""
    busy: float = 0.0
    """Seconds spent in steps, as against loading, validating and sampling."""
    checkpoint: str | None = None
    output: str | None = None
    terminal: dict[str, Any] | None = None
    points: list[float] = field(default_factory=list)
    stride: int = 1
    gathered: float = 0.0
    count: int = 0

    @classmethod
    def load(cls, plain: dict[str, Any] | None) -> Digest:
        """From what `as_json` gave; fields of other versions are left out."""
        return cls(**{key: deepcopy(value) for key, value in (plain or {}).items() if key in cls.__dataclass_fields__})

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)

    @property
    def status(self) -> str | None:
        """succeeded, stopped or failed once the log says so."""
        return TERMINAL[self.terminal["type"]] if self.terminal else None

    @property
    def seconds(self) -> float | None:
        """Seconds of work up to the last event; None before it started."""
        if self.stretch is None:
            return self.spent or None
        return self.spent + max(0.0, (self.last or self.stretch) - self.stretch)

    @property
    def speed(self) -> float | None:
        """The middle one of the last speeds, tokens a second."""
        return sorted(self.speeds)[len(self.speeds) // 2] if self.speeds else None

    @property
    def sparkline(self) -> list[float]:
        """Training loss, at most 40 points, oldest first."""
        rest = [self.gathered / self.count] if self.count else []
        return [round(point, 4) for point in (self.points + rest)[-POINTS:]]

    def fold(self, event: dict[str, Any]) -> None:
        """Take one more event in.

        A failure may be written down long after it happened, so work is counted up to the event before it.
        """
        kind = event["type"]
        if kind != "failed" and event.get("name") != "queued":
            self.last = event.get("time", self.last)
        if kind == "phase":
            self._phase(event)
        elif kind == "preflight":
            self.total_steps = event.get("total_steps")
            if event.get("measured"):
                self.seconds_left = event.get("seconds")
        elif kind == "step":
            self._step(event)
        elif kind == "eval":
            self.validation_loss = event.get("loss")
            if event.get("best"):
                self.best_loss, self.best_step = event.get("loss"), event.get("step")
        elif kind == "checkpoint":
            self.checkpoint = event.get("path")
        elif kind in TERMINAL:
            self._end(event)

    def _phase(self, event: dict[str, Any]) -> None:
        self.phase = event["name"]
        if self.phase == "queued":
            self._close()
            self.queued, self.ended, self.terminal, self.output = event["time"], None, None, None
        elif self.stretch is None:
            self.stretch = event["time"]
            self.started = self.started or self.stretch

    def _step(self, event: dict[str, Any]) -> None:
        if event["step"] <= self.step:
            self._rewind(event["step"] - 1)
        self.phase = "training"
        self.step = event["step"]
        for name in ("total_steps", "epoch", "tokens_per_second", "seconds_left", "memory"):
            setattr(self, name, event.get(name, getattr(self, name)))
        if event.get("tokens_per_second"):
            self.speeds = [*self.speeds, event["tokens_per_second"]][-20:]
            self.busy += event.get("tokens", 0) / event["tokens_per_second"]
        loss = event.get("loss")
        if loss is None:
            return
        self.train_loss = loss
        self.gathered, self.count = self.gathered + loss, self.count + 1
        if self.count == self.stride:
            self.points.append(self.gathered / self.count)
            self.gathered, self.count = 0.0, 0
        if len(self.points) > POINTS:
            self.gathered, self.count = self.points.pop() * self.stride, self.stride
            self.points = [(a + b) / 2 for a, b in zip(self.points[::2], self.points[1::2], strict=True)]
            self.stride *= 2

    def _rewind(self, step: int) -> None:
        """A resumed run takes some steps again: forget the points after `step`."""
        self.points = self.points[: max(0, step) // self.stride]
        self.gathered, self.count = 0.0, 0

    def _end(self, event: dict[str, Any]) -> None:
        self.terminal = event
        self.ended = self.last or event.get("time")
        self.output = event.get("output") or None
        self.step = event.get("step") or self.step
        for name in ("train_loss", "validation_loss", "best_step"):
            setattr(self, name, event[name] if event.get(name) is not None else getattr(self, name))
        self._close()

    def _close(self) -> None:
        """The stretch of work is over."""
        self.spent = self.seconds or 0.0
        self.stretch = self.seconds_left = None
