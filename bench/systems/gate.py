"""When a trainer built on transformers' may take its next step, and how long the last one took. For the peers' environments."""

from __future__ import annotations

import time
from typing import Any

from protocol import Turns
from transformers import TrainerCallback


class Gate(TrainerCallback):
    """Waits for its turn before a step and tells about it afterwards; the trainer must log every step and count tokens."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begin = self.seconds = 0.0
        self.seen = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if not self.turns.wait():
            self.turns.end()
        self.begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.seconds = time.perf_counter() - self.begin

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if logs and "loss" in logs:
            tokens = int(state.num_input_tokens_seen)
            took = {"seconds": self.seconds, "tokens": tokens - self.seen}
            self.turns.say(step=state.global_step, loss=float(logs["loss"]), **took)
            self.seen = tokens
