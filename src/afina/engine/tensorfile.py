"""Writing safetensors files: the length of the head in 8 bytes, the head in JSON, then the bytes of every tensor.

Straight from each tensor's own memory, a few megabytes at a time: the library's writer ends the whole process where it finds no
memory. Files are as it would read them (https://huggingface.co/docs/safetensors: little-endian, no gaps, nothing twice).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ALIGNED = 8
AT_ONCE = 4 << 20
"""Numbers that are converted or fetched from a graphics card at once."""


def write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write `tensors` to `path`, on disk when this returns; floating-point ones are rounded to `dtype` on the way, if given.

    Raises OSError; KeyError for a kind of number that is not in NAMES.
    """
    kinds = {name: dtype if dtype and tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    # wide numbers first: then every tensor begins at a multiple of its width
    order = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * kinds[name].itemsize
        shape = list(tensors[name].shape)
        head[name] = {"dtype": NAMES[kinds[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for piece in _pieces(tensors[name], kinds[name]):
                file.write(piece.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _pieces(tensor: Tensor, kind: torch.dtype) -> Iterator[Tensor]:
    """The numbers of `tensor` in order, on the processor; no copy where they lie there as they are to be written."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), AT_ONCE):
        yield flat[start : start + AT_ONCE].to("cpu", kind)
