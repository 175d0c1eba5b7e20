"""One more token through all layers of a model in a single call (`speak.h`), and products of stored weights with a few vectors.

The structures here are those of `vectors.h`, field by field. Knows nothing of models: whoever fills them in does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from afina.engine.native.build import library
from afina.engine.native.calls import address

__all__ = ["FEW_ROWS", "Layer", "Matrix", "Steps", "multiply", "serves", "takes", "unpack"]
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
FEW_ROWS = 12
"""For which stored weights are read as they are."""
FORMS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class Matrix(ctypes.Structure):
    """Weights (outputs, inputs) in float32, bfloat16, or int8 with a scale an output; the scales and the bias are float32."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("form", ctypes.c_int64),
    )

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Matrix:
        """The tensors must live as long as this does."""
        return cls(weight.data_ptr(), address(scale), address(bias), FORMS[weight.dtype])


class Layer(ctypes.Structure):
    """Norms are addresses of float32 scales, None where a layer has none; keys and values (heads, room, size), cosine and sine
    (room, size / 2), all four in the format of what is kept; window and softcap 0: none."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("norm", "query_norm", "key_norm", "post", "after_norm", "after_post")),
        *((name, Matrix) for name in ("qkv", "output", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "cosine", "sine")),
        ("window", ctypes.c_int64),
        ("scaling", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "width", "queries", "heads", "size", "inner", "room", "gelu")),
        ("eps", ctypes.c_float),
    )


class Steps:
    """All layers, ready for one token after the other; what they point to must live as long as this.

    kept: the format of keys, values, cosines and sines; facts: width, queries,
    heads (of keys), size (of a head), inner, room, gelu, eps.
    """

    def __init__(self, layers: Sequence[Layer], kept: torch.dtype, **facts: float) -> None:
        self._layers = (Layer * len(layers))(*layers)
        self._network = _Network(layers=len(layers), **facts)
        self._speak = getattr(library(), f"speak_{NAMES[kept]}")

    def take(self, x: Tensor, position: int) -> Tensor:
        """x (1, d) of the token at `position` → its hidden state after the last layer, float32; its key and value are kept.
        Raises MemoryError."""
        hidden = x.to(torch.float32, copy=True)
        arguments = ctypes.byref(self._network), self._layers, ctypes.c_void_p(hidden.data_ptr())
        if self._speak(*arguments, ctypes.c_long(position)):
            raise MemoryError("no memory for a token")
        return hidden


def multiply(x: Tensor, matrix: Matrix, outputs: int) -> Tensor:
    """x (rows, inputs), float32 and contiguous → (rows, outputs), float32; for a few rows."""
    y = torch.empty(x.shape[0], outputs)
    pointers = ctypes.c_void_p(x.data_ptr()), ctypes.byref(matrix), ctypes.c_void_p(y.data_ptr())
    getattr(library(), "multiply")(*pointers, *map(ctypes.c_long, (*x.shape, outputs)))  # noqa: B009
    return y


def takes(x: Tensor) -> bool:
    """Whether `multiply` is the quickest for x (rows, inputs): float32, and so few rows that reading the weights is what takes the time."""
    return x.shape[0] <= FEW_ROWS and x.dtype == torch.float32 and library() is not None


def unpack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 weights in `dtype`, which holds them exactly."""
    if not serves(dtype):
        return weight.to(dtype)
    wide = torch.empty_like(weight, dtype=dtype)
    pointers = ctypes.c_void_p(weight.data_ptr()), ctypes.c_void_p(wide.data_ptr())
    getattr(library(), f"unpack_{NAMES[dtype]}")(*pointers, ctypes.c_long(weight.numel()))
    return wide


def serves(kept: torch.dtype) -> bool:
    """Whether there are kernels for keys and values, or unpacked weights, in this format."""
    return library() is not None and kept in NAMES
