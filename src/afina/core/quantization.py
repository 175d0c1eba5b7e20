"""What weights of 8 and 4 bits need: how much memory, and which package. Knows nothing of how they are made."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from afina.core.errors import Problem
from afina.core.messages import N_, say

PACKAGE = "bitsandbytes"

BYTES: dict[str, float] = {"none": 4.0, "8bit": 1.0, "4bit": 0.516}
"""Bytes of a weight. 4 bits are 4.127 with their scales: one byte for 64 weights, which have one of four for 256 of them
(Dettmers et al. 2023, section 3, “double quantization”)."""


def missing(quantization: str) -> Problem | None:
    """The problem `bitsandbytes_missing` where `quantization` needs the package and it is not installed."""
    if quantization == "none" or find_spec(PACKAGE) is not None:
        return None
    return Problem(
        "bitsandbytes_missing",
        say(N_("A base model of 8 or 4 bits needs the package {package}, which is not installed."), package=PACKAGE),
        say(
            N_(
                'Install it into the environment that Afina runs in: pip install "{package}". Or choose no quantisation.'
            ),
            package="bitsandbytes>=0.50,<0.51",
        ),
        field="quantization",
        value=quantization,
    )


def leave_out() -> None:
    """Let the package count as not installed in this process: PEFT imports it wherever it finds it, which takes about a second.
    For processes that will not quantise, before they import PEFT; without effect where the package is imported already."""
    sys.modules.setdefault(PACKAGE, None)  # type: ignore[arg-type]  # None: what cannot be imported, to find_spec too
