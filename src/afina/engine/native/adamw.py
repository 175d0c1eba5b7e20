"""AdamW's step for all that is trained in one pass over memory (`adamw.h`), and the norm of its gradients.

Knows nothing of optimizers' states or of rates: whoever calls does.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

from torch import Tensor

from afina.engine.native.build import library
from afina.engine.native.calls import address, call

__all__ = ["Moved", "norm", "step"]


class Moved(ctypes.Structure):
    """What a step does to one tensor; the fields are those of `trained` in `adamw.h`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gradient", "numbers", "first", "second", "rounded")),
        ("count", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("keep", "pace", "wider")),
    )

    @classmethod
    def of(cls, gradient: Tensor, others: Sequence[Tensor | None], rates: Sequence[float]) -> Moved:
        """others: in that order, float32 but for the last, which gets the numbers in bfloat16 where there is one.
        rates: 1 - rate · decay, rate / (1 - β1^t), 1 / √(1 - β2^t)."""
        return cls(*map(address, (gradient, *others)), gradient.numel(), *rates)


class _Moving(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_float) for name in ("by", "beta_1", "rest_1", "beta_2", "rest_2", "eps"))


def step(all_moved: Sequence[Moved], by: float, betas: tuple[float, float], eps: float) -> None:
    """One step of all; their gradients count `by` times."""
    moments = [share for beta in betas for share in (beta, 1.0 - beta)]
    call(library(), "adamw", (Moved * len(all_moved))(*all_moved), len(all_moved), _Moving(by, *moments, eps))


def norm(gradients: Sequence[Tensor]) -> float:
    """The common norm of float32 `gradients`."""
    total = ctypes.c_double()
    given = (Moved * len(gradients))(*(Moved(gradient=each.data_ptr(), count=each.numel()) for each in gradients))
    call(library(), "sum_of_squares", given, len(gradients), total)
    return math.sqrt(total.value)
