"""Everything that differs between a processor and a graphics card, and what this one does fastest.

The CUDA and MPS branches are written after PyTorch's documentation and have not been run: no such machine was at hand.
"""

from __future__ import annotations

import gc
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from afina.core.cache import remembered
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(wanted: str) -> torch.device:
    """The device to compute on; "auto" takes CUDA, then MPS, then the processor. Raises AfinaError `no_such_device`."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
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


def use_threads(count: int | None) -> int:
    """Set the number of threads of the processor's kernels; returns it. None keeps what the environment asked for."""
    if count is not None and count != torch.get_num_threads():
        torch.set_num_threads(count)
    return torch.get_num_threads()


def fastest_dtype(device: torch.device, shapes: Sequence[tuple[int, int]], rows: int) -> tuple[torch.dtype, float]:
    """The faster of float32 and bfloat16 for products of `rows` vectors with weights of `shapes` (outputs, inputs), and
    its rate in FLOP/s. Measured for a few milliseconds, for no flag of the hardware tells; then remembered, so that a
    resumed run computes in the format it began with."""
    facts = [str(device), name(device), torch.__version__, torch.get_num_threads(), shapes, rows]
    dtype, rate = remembered("precision", facts, lambda: _measure(device, shapes, rows))
    return DTYPES[dtype], float(rate)


def _measure(device: torch.device, shapes: Sequence[tuple[int, int]], rows: int) -> tuple[str, float]:
    rates = {dtype: _rate(device, shapes, rows, dtype) for dtype in _supported(device)}
    best = max(rates, key=lambda dtype: rates[dtype])
    # a tie goes to float32, which is exact: bfloat16 must be worth its rounding
    if best is torch.bfloat16 and rates[best] < 1.15 * rates[torch.float32]:
        best = torch.float32
    return str(best).removeprefix("torch."), rates[best]


def name(device: torch.device) -> str:
    """What computes: the graphics card, else the processor and what of it PyTorch uses."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} {_processor()} {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    """The processor's name as Linux has it, else as Python does."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _supported(device: torch.device) -> list[torch.dtype]:
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return [torch.float32]
    return [torch.float32, torch.bfloat16]


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
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_memory(device: torch.device) -> int:
    """Bytes that a new computation may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held: on the device where it has a memory of its own, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc", "bad allocation")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def release_memory(device: torch.device) -> None:
    """Give cached blocks back before trying again with less."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the random generators that a step may draw from (dropout)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators back to `state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if "mps" in state and device.type == "mps":
        torch.mps.set_rng_state(state["mps"])
