"""What the curves say: the best validation loss so far, when patience is over, and advice in plain words.

Part of every checkpoint (`as_json`, `from_json`), so a resumed run judges as if it had never stopped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from afina.core.events import Advice
from afina.core.messages import N_, say

RISES = 3
REMEMBERED = 50


@dataclass
class Watch:
    """The history of a run as far as judgements need it.

    best: lowest validation loss of all evaluations, at best_step (0: before training); best_trained: the same among those
    after at least one step, with a checkpoint; recent: (summed loss, tokens) of the last steps; smooth, lowest: the
    training loss, smoothed, and its lowest.
    """

    evals: list[tuple[int, float]] = field(default_factory=list)
    best: float | None = None
    best_step: int | None = None
    best_trained: float | None = None
    best_trained_step: int | None = None
    waited: int = 0
    recent: list[tuple[float, int]] = field(default_factory=list)
    smooth: float | None = None
    lowest: float | None = None
    given: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Watch:
        """The inverse of `as_json`."""
        pairs = {name: [tuple(pair) for pair in data[name]] for name in ("evals", "recent")}
        return cls(**{**data, **pairs})

    @property
    def validation_loss(self) -> float | None:
        """The latest one."""
        return self.evals[-1][1] if self.evals else None

    def train_loss(self) -> float:
        """Mean loss over the answer tokens of the latest steps (at most REMEMBERED)."""
        return sum(loss for loss, _ in self.recent) / max(1, sum(tokens for _, tokens in self.recent))

    def saw_step(self, step: int, loss: float, learned: int, total: int) -> list[Advice]:
        """Take in the mean loss over the `learned` tokens of `step`."""
        keep = max(1, min(REMEMBERED, total // 10))
        self.recent = [*self.recent, (loss * learned, learned)][-keep:]
        self.smooth = loss if self.smooth is None else 0.9 * self.smooth + 0.1 * loss
        self.lowest = self.smooth if self.lowest is None else min(self.lowest, self.smooth)
        if step > 10 and self.smooth > 1.5 * self.lowest + 0.5:
            return self._advise(
                "diverging", step, N_("The training loss is growing: the learning rate is too high. Try a tenth of it.")
            )
        return []

    def saw_eval(self, step: int, loss: float) -> tuple[bool, list[Advice]]:
        """Take in a validation loss; returns whether it is the best so far, and advice."""
        best = self.best is None or loss < self.best
        if best:
            self.best, self.best_step = loss, step
        if step and (self.best_trained is None or loss < self.best_trained):
            self.best_trained, self.best_trained_step = loss, step
        self.waited = 0 if best else self.waited + 1
        self.evals.append((step, loss))
        last = [value for _, value in self.evals[-RISES - 1 :]]
        if len(last) == RISES + 1 and all(later > earlier for earlier, later in pairwise(last)):
            text = N_(
                "Validation loss has risen 3 times in a row: the model is learning the examples by heart. Stop here and keep the best, use fewer epochs, or add examples."
            )
            return best, self._advise("overfitting", step, text)
        return best, []

    def saw_end(self, step: int) -> list[Advice]:
        """Judge the finished run."""
        if len(self.evals) < 3:
            return []
        losses = [loss for _, loss in self.evals]
        if self.best_step == 0:
            return self._advise(
                "no_improvement",
                step,
                N_(
                    "Validation loss never fell below what it was before training. Try a smaller learning rate, or look at the validation examples."
                ),
            )
        late = losses[-max(3, len(losses) // 3)]
        if self.best_step == self.evals[-1][0] and losses[-1] < 0.98 * late:
            return self._advise(
                "still_learning", step, N_("Validation loss was still falling at the end: more epochs could help.")
            )
        return []

    def _advise(self, code: str, step: int, text: str) -> list[Advice]:
        """Each piece of advice once a run."""
        if code in self.given:
            return []
        self.given.append(code)
        return [Advice(code, step, say(text))]
