"""The environment of a process that computes: threads, memory allocator, no network. Knows nothing of what it computes."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def compute_environment(threads: int | None = None, *, network: bool = False) -> dict[str, str]:
    """The present environment with what a training or chat process needs.

    Threads that wait spin for some microseconds and then sleep: when other programs compute too, spinning on makes a step
    many times slower, and not spinning at all costs a quarter on a quiet machine. The allocator keeps what is freed and
    uses large pages (glibc's switches; elsewhere they mean nothing): without, a step maps and clears its memory anew. Of products
    compiled for their shapes (oneDNN) the last few hundred are kept; each takes half a megabyte. With `network` the hub may be
    asked, unless the person has forbidden it.
    """
    count = str(threads or thread_count())
    quick = {"GOMP_SPINCOUNT": "20000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "400"}
    tuned = {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "AFINA_THREADS": count,
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "MALLOC_ARENA_MAX": "2",
        "TOKENIZERS_PARALLELISM": "false",
        **({} if network else {"HF_HUB_OFFLINE": "1"}),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    return {**quick, **os.environ, **tuned}


def thread_count() -> int:
    """`AFINA_THREADS`, else the physical cores this process may use."""
    given = os.environ.get("AFINA_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """No garbage collection meanwhile: for imports, which make millions of objects that stay, and no garbage. It would go
    over them again and again, a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
