"""Writing safetensors files: the length of the head in 8 bytes, the head in JSON, then the bytes of every tensor.

Straight from each tensor's own memory, a few megabytes at a time: the library's writer ends the whole process where it finds no
memory. Files are as it would read them (https://huggingface.co/docs/safetensors: little-endian, no gaps, nothing twice).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afina.core.files import sync_file
from afina.engine.straight import Straight

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
    put(path, tensors, dtype)
    sync_file(path)


def put(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    hurried: Callable[[], bool] = lambda: False,
) -> None:
    """As `write`, but leaves it to the caller to `sync_file`. As soon as somebody is `hurried`, the rest goes through the system's
    cache: sooner done, though not sooner on disk.
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
    with Straight(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            tensor = tensors[name].detach().contiguous()
            for start in range(0, tensor.numel(), AT_ONCE):
                if hurried():
                    file.by_cache()
                file.write(_piece(tensor, start, kinds[name]))


def _piece(tensor: Tensor, start: int, kind: torch.dtype) -> memoryview:
    """The bytes of up to AT_ONCE numbers from `start`; no copy where they lie on the processor as they are to be written."""
    return tensor.reshape(-1)[start : start + AT_ONCE].to("cpu", kind).view(torch.uint8).numpy().data
