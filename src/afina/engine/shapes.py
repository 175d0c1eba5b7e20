"""How many rows a product should have. In bfloat16 PyTorch's products are compiled for each new shape (oneDNN): a few
milliseconds, and memory that stays, for every length that was not seen before. So lengths are rounded up.
"""

from __future__ import annotations

import torch

ROUNDED_TO = 64


def multiple(dtype: torch.dtype) -> int:
    """What the rows of products in `dtype` should be a multiple of."""
    return ROUNDED_TO if dtype == torch.bfloat16 else 1
