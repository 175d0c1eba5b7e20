"""The arithmetic of a run, in one place: the estimate before the start and the loop itself use the same numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST_TOKENS = {"cpu": 2304, "mps": 4096, "xpu": 16384, "cuda": 16384}
"""Tokens computed at once on each kind of device, unless one example is longer: more gains nothing, the matrix products are at their
full rate."""


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of an epoch (the last, incomplete one included) and of the whole run."""

    per_epoch: int
    total: int


def steps(rows: int, examples_per_step: int, epochs: float, max_steps: int | None = None) -> Steps:
    """Steps for `rows` examples an epoch: ⌈rows ÷ examples_per_step⌉, times `epochs`, rounded up, at most `max_steps`.

    No rows, no steps. A rounding error of floating point never adds a step (3 steps × 0.1 × 10 are 3).
    """
    if rows <= 0:
        return Steps(0, 0)
    per_epoch = math.ceil(rows / examples_per_step)
    total = max(1, math.ceil(round(per_epoch * epochs, 6)))
    return Steps(per_epoch, min(total, max_steps) if max_steps else total)


def weighted_rows(rows: int, weight: float) -> int:
    """Rows of one dataset used in each epoch of a mix: weight 0.2 uses a fifth, 2 each row twice, and at least one."""
    whole = math.floor(weight)
    return rows * whole + min(rows, max(0 if whole else 1, round((weight - whole) * rows)))


def every(asked: int | None, total_steps: int, times: int = 10) -> int:
    """The interval of validation or saving in steps: as asked, else about `times` times in a run."""
    return asked if asked is not None else max(1, math.ceil(total_steps / times))


def lora_parameters(layers: list[tuple[int, int]], rank: int) -> int:
    """Trainable parameters of LoRA on linear layers given as (inputs, outputs): rank × (inputs + outputs) each."""
    return sum(rank * (inputs + outputs) for inputs, outputs in layers)


def memory(
    parameters: int,
    trainable: int,
    *,
    tokens: int,
    hidden: int,
    layers: int,
    vocabulary: int,
    quantized: int = 0,
    width: float = 4.0,
) -> int:
    """A rough upper estimate, in bytes, of what a run holds at its peak, everything in float32.

    Weights 4 bytes each, but the `quantized` ones among them `width`; what is trained 16 more (gradient 4, AdamW's two moments 8, a copy while saving 4); for each of
    the `tokens` computed at once about 34 × hidden values a layer for the backward pass, and the output head's scores
    for up to 1,024 tokens at a time, three times; plus 0.6 GB for the program itself.
    """
    weights = 4 * (parameters - quantized) + width * quantized + 16 * trainable
    activations = 4 * tokens * hidden * 34 * layers
    head = 4 * 3 * vocabulary * min(tokens, 1024)
    return int(weights + activations + head + 600_000_000)
