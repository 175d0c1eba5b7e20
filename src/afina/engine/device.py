"""Everything that differs between a processor and a graphics card, and what this one does fastest.

The only module of the engine that names a kind of device (a test holds the others to that): which there are, what they can
compute with, how much memory they have, how they say that it ran out. AMD's cards are “cuda” to PyTorch. The branches for
graphics cards are written after PyTorch's documentation and have not been run: no such machine was at hand.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError

from afina.core.cache import recalled, remember
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What is trained in. float16 is not: gradients below its smallest number vanish unless the loss is scaled up, and a scale
that is too large makes steps that have to be thrown away, so that a step would no longer be what the settings say."""

ROUNDS = 3
CLEAR = 1.15
"""bfloat16 must be worth its rounding: this much faster than float32, or it is not taken."""

KINDS_COMPILED = 64

FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
    NotImplementedError,
    LookupError,
)
"""How a kernel, or its compiler, says that it does not work here."""

OF_MEMORY = (MemoryError, RuntimeError, OSError, ImportError, SafetensorError)
"""What is raised where memory runs out: by allocators, by the system that is to map a file or start a thread, by safetensors."""
SIGNS_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "can't start new thread",
    "failed to map segment",
)


def choose_device(wanted: str) -> torch.device:
    """The device to compute on; "auto" takes CUDA, then XPU, then MPS, then the processor. Raises AfinaError
    `no_such_device`."""
    there = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, is_there in there.items() if is_there))
    if not there[wanted]:
        raise AfinaError(
            Problem(
                "no_such_device",
                say(N_("This machine has no device “{device}” that PyTorch can use."), device=wanted),
                say(N_("Set the device to automatic or cpu.")),
                field="device",
                value=wanted,
            )
        )
    return torch.device(wanted)


def found() -> list[dict[str, Any]]:
    """The devices besides the processor: kind, name, memory in bytes."""
    devices: list[dict[str, Any]] = []
    for kind in ("cuda", "xpu"):
        library = getattr(torch, kind)
        for number in range(library.device_count() if library.is_available() else 0):
            facts = library.get_device_properties(number)
            devices.append({"kind": kind, "name": facts.name, "memory": int(facts.total_memory)})
    if torch.backends.mps.is_available():
        devices.append({"kind": "mps", "name": "Apple GPU", "memory": int(torch.mps.recommended_max_memory())})
    return devices


def _library(device: torch.device) -> Any:
    """PyTorch's functions for graphics cards with a memory of their own, which are the same for CUDA and XPU; else None."""
    return getattr(torch, device.type) if device.type in ("cuda", "xpu") else None


def use_threads(count: int | None) -> int:
    """Set the number of threads of the processor's kernels; returns it. None keeps what the environment asked for."""
    if count is not None and count != torch.get_num_threads():
        torch.set_num_threads(count)
    return torch.get_num_threads()


def fastest_dtype(device: torch.device, shapes: Sequence[tuple[int, int]], rows: int) -> tuple[torch.dtype, float]:
    """The faster of float32 and bfloat16 for products of `rows` vectors with weights of `shapes` (outputs, inputs), and
    its rate in FLOP/s. Measured for a few milliseconds, for no flag of the hardware tells; then remembered, so that the
    same run computes in the same format tomorrow. What was measured while other programs computed is used but not kept."""
    facts = [str(device), name(device), torch.__version__, torch.get_num_threads(), shapes, rows]
    known = recalled("precision", facts)
    if known is None:
        known = _measure(device, shapes, rows)
        if not busy(device):
            remember("precision", facts, known)
    dtype, rate = known
    return DTYPES[dtype], float(rate)


def _measure(device: torch.device, shapes: Sequence[tuple[int, int]], rows: int) -> tuple[str, float]:
    """Taken in turn, the best of each: what another program does for a moment then hits one round, not one format."""
    rates: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name in _supported(device):
            rates[name] = max(rates.get(name, 0.0), _rate(device, shapes, rows, DTYPES[name]))
    best = "bfloat16" if rates.get("bfloat16", 0.0) >= CLEAR * rates["float32"] else "float32"
    return best, rates[best]


def busy(device: torch.device) -> bool:
    """Whether other programs want more of the processor than there is; a graphics card is not asked."""
    return device.type == "cpu" and psutil.getloadavg()[0] > (os.cpu_count() or 1)


def name(device: torch.device) -> str:
    """What computes: the graphics card, else the processor and what of it PyTorch uses."""
    if library := _library(device):
        return str(library.get_device_name(device))
    return f"{platform.machine()} {_processor()} {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    """The processor's name as Linux has it, else as Python does."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _supported(device: torch.device) -> list[str]:
    """The formats that can be faster here: bfloat16 where the hardware has it (NVIDIA: from compute capability 8.0 on)."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return ["float32"]
    if device.type == "xpu" and not torch.xpu.is_bf16_supported(including_emulation=False):
        return ["float32"]
    return ["float32", "bfloat16"]


def _rate(device: torch.device, shapes: Sequence[tuple[int, int]], rows: int, dtype: torch.dtype) -> float:
    pairs = [
        (torch.ones(rows, inputs, dtype=dtype, device=device), torch.ones(outputs, inputs, dtype=dtype, device=device))
        for outputs, inputs in shapes
    ]

    def products() -> None:
        for vectors, weight in pairs:
            torch.nn.functional.linear(vectors, weight)

    seconds = time_of(products, device)
    return sum(2.0 * rows * outputs * inputs for outputs, inputs in shapes) / seconds


def time_of(work: Callable[[], None], device: torch.device, budget: float = 0.03) -> float:
    """Seconds of the fastest of a few repetitions, after one to warm up."""
    with torch.inference_mode():
        work()
        best, spent = float("inf"), 0.0
        while spent < budget:
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            took = time.perf_counter() - start
            best, spent = min(best, took), spent + took
    return best


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if library := _library(device):
        library.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_memory(device: torch.device) -> int:
    """Bytes that a new computation may take."""
    if library := _library(device):
        free, _ = library.mem_get_info(device)
        return int(free) + int(library.memory_reserved(device)) - int(library.memory_allocated(device))
    return int(psutil.virtual_memory().available)


def obtainable_memory(device: torch.device) -> int:
    """Bytes that this process can still get: what is free, within the limits that the system was told for it."""
    free = free_memory(device)
    if device.type != "cpu" or sys.platform == "win32":
        return free
    import resource

    held = psutil.Process().memory_info()
    limits = [(resource.RLIMIT_AS, held.vms), (resource.RLIMIT_DATA, getattr(held, "data", 0))]
    within = [resource.getrlimit(kind)[0] - taken for kind, taken in limits if resource.getrlimit(kind)[0] >= 0]
    return max(0, min([free, *within]))


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held: on the device where it has a memory of its own, else resident."""
    if library := _library(device):
        return int(library.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, OF_MEMORY) and any(sign in str(error).lower() for sign in SIGNS_OF_MEMORY)


def release_memory(device: torch.device) -> None:
    """Give cached blocks back before trying again with less."""
    gc.collect()
    if library := _library(device):
        library.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the random generators that a step may draw from (dropout)."""
    state = {"cpu": torch.get_rng_state()}
    if library := _library(device):
        state[device.type] = library.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators back to `state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cpu" or device.type not in state:
        return
    if library := _library(device):
        library.set_rng_state(state[device.type], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state["mps"])


# ---------------------------------------------------------------------- what a kind of device computes with


def computes_layers(device: torch.device) -> bool:
    """Whether our own layers are the fastest there; graphics cards have fused kernels, reached through transformers' layers."""
    return device.type == "cpu"


def attention_kernels(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The kernels for attention over examples end to end that may work here, the fastest first (see `kernels.py`).

    PyTorch's own flash attention and the `flash-attn` package take bfloat16 only, from compute capability 8.0 on (Dao 2023);
    flex attention is compiled by Triton. Whether they do work is tried out by whoever takes one.
    """
    names = []
    if device.type == "cuda":
        capable = dtype == torch.bfloat16 and torch.cuda.get_device_capability(device)[0] >= 8
        if capable and find_spec("torch.nn.attention.varlen"):
            names.append("varlen")
        if capable and find_spec("flash_attn"):
            names.append("flash")
    if device.type in ("cuda", "xpu") and find_spec("triton"):
        names.append("flex")
    return names


def compiles(device: torch.device) -> bool:
    """Whether small functions are worth compiling: on graphics cards, where Triton is there to do it."""
    return device.type in ("cuda", "xpu") and find_spec("triton") is not None


def compiled(function: Callable[..., Any]) -> Any:
    """`function` compiled at its first call, and once more, for rows of any length, when a second length comes.

    Not with `dynamic=True`: that takes constants (a soft cap, an epsilon) for numbers that change, which flex attention
    cannot compile. Other kinds of input compile anew (learning or looking, window or none, one block or several): more than
    the eight PyTorch allows before it gives up, and what it falls back to would hold the scores of all pairs of tokens.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(KINDS_COMPILED, torch._dynamo.config.recompile_limit)
    return torch.compile(function)


def compute_alone() -> None:
    """Let this process do without PyTorch's parts for several machines, as in a PyTorch that was built without them."""
    torch.distributed.is_available = lambda: False


def has_fused_optimizer(device: torch.device) -> bool:
    """Whether PyTorch has AdamW in one kernel there."""
    return device.type in ("cpu", "cuda", "mps", "xpu")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; what a card of its own memory fetches is put where it can be fetched while the processor goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
