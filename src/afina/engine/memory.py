"""How much fits: the tokens computed at once, whether activations are kept or computed again, and what it will take.

Estimates only, on the safe side; the loop halves the row when one of them was wrong.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.core.plan import MOST_TOKENS
from afina.engine import device as devices
from afina.engine.loss import SCORES_AT_ONCE

KEPT_PER_LAYER = 34
"""Values kept for backward per token and layer by transformers' own layers, as a multiple of the hidden size (measured on
Llama's: 27). Layers computed here keep what `_kept` counts, about 10 times."""

PROGRAM = 900_000_000
"""Python, PyTorch, products compiled for their shapes, and holes of the heap (measured: 0.7 to 0.9 GB)."""
HEAD_SCORES = 3 * SCORES_AT_ONCE


PAGE = 4096
MOST_TOUCHED = 1 << 30
LEAST_TOUCHED = 64 << 20


def touch(weights: int, free: int, cores: int) -> threading.Thread | None:
    """Have the system hand out memory on a core that is idle while Python imports, one at a time, on the other.

    weights: bytes of the model's files; twice that is needed for certain; free: bytes available. Where the allocator keeps
    what is freed (`core/compute.py`), the first step then finds its memory mapped and cleared. None where it would not pay.
    """
    count = min(2 * weights, MOST_TOUCHED)
    if sys.platform != "linux" or cores < 2 or count < LEAST_TOUCHED or count > free // 4:
        return None
    try:
        block = np.empty(count, np.uint8)
    except MemoryError:
        return None
    thread = threading.Thread(target=block.__setitem__, args=(slice(None, None, PAGE), 0), name="touch", daemon=True)
    thread.start()
    return thread


@contextmanager
def asked_for(model: str, needed: int, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Where memory runs out meanwhile, AfinaError `out_of_memory` says so: `needed` bytes for the weights of `model` in `dtype`,
    and what there was."""
    there = devices.obtainable_memory(device)
    try:
        yield
    except devices.OF_MEMORY as error:
        if not devices.is_out_of_memory(error):
            raise
        raise AfinaError(_does_not_fit(model, needed, dtype, there), "failed") from error


def _does_not_fit(model: str, needed: int, dtype: torch.dtype, there: int) -> Problem:
    text = N_(
        "There is not enough memory to load “{model}”: its weights alone take {needed} MB in {precision}, and {there} MB were there."
    )
    precision = str(dtype).removeprefix("torch.")
    return Problem(
        "out_of_memory",
        say(text, model=model, needed=needed >> 20, precision=precision, there=there >> 20),
        say(
            N_(
                "Close other programs, or choose a smaller model. In training, quantisation (8 or 4 bits) and bfloat16 take less."
            )
        ),
        field="model",
        value=model,
    )


@dataclass(frozen=True)
class Layout:
    """tokens_per_row: how many are computed at once; checkpointing: activations are computed again in backward;
    expected: bytes at the peak."""

    tokens_per_row: int
    checkpointing: bool
    expected: int


def lay_out(
    config: Any,
    *,
    weights: int,
    trainable: int,
    width: int,
    longest: int,
    step: int,
    free: int,
    device: str,
    switch: str,
    path: str,
) -> Layout:
    """Choose the layout of a step for a model of `config` (transformers' text config).

    weights: their bytes, however many bits each has; width: bytes of a number that is computed with; longest: tokens of the
    longest example, which is never split; step: tokens of the longest step; free: bytes available; switch: "auto", "on" or "off"
    for activation checkpointing; path: which of the ways of computing (`model.py`).
    """
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    laid = weights // layers if path == "fast" else 0  # those of a layer once more, as its products take them
    fixed = weights + laid + trainable * (16 if width == 4 else 18) + HEAD_SCORES + PROGRAM
    kept = _kept(config) if path == "fast" else KEPT_PER_LAYER * hidden
    keep = (layers + 1) * kept * width  # and what the backward of a layer needs for itself
    again = hidden * layers * width + 2 * kept * width
    most = min(MOST_TOKENS[device], max(longest, step))
    room = int(0.8 * free) - fixed
    checkpointing = switch == "on" or (switch == "auto" and room < keep * longest)
    cost = again if checkpointing else keep
    tokens = max(longest, min(most, room // cost if room > 0 else 0))
    return Layout(tokens, checkpointing, fixed + cost * tokens)


def _kept(config: Any) -> int:
    """Values that a layer computed here keeps per token (`decoder.py`): its two inputs, what attention projects and finds,
    gates and ups, and a few hundred beside."""
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or hidden // heads)
    return 2 * hidden + 2 * (heads + keys) * size + 2 * int(config.intermediate_size) + 256
