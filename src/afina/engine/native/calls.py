"""One call of a compiled kernel: tensors go as the addresses of their numbers, structures by reference."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

__all__ = ["Value", "address", "call"]

Value = Tensor | ctypes.Structure | ctypes.Array[Any] | ctypes.c_double | float | int | None


def call(library: Any, name: str, *values: Value) -> None:
    """The kernel `name`. Raises MemoryError where it found no memory to work in."""
    if getattr(library, name)(*map(_argument, values)):
        raise MemoryError(f"no memory for {name}")


def address(tensor: Tensor | None) -> int | None:
    """Where its numbers lie."""
    return None if tensor is None else tensor.data_ptr()


def _argument(value: Value) -> object:
    match value:
        case ctypes.Structure() | ctypes.Array() | ctypes.c_double():
            return ctypes.byref(value)
        case bool():
            return ctypes.c_int(value)
        case int():
            return ctypes.c_long(value)
        case float():
            return ctypes.c_float(value)
        case _:
            return ctypes.c_void_p(address(value))
