"""What the machine at hand can do, and what a training step asks of it: rates, useful work, facts for the records."""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from afina.core.compute import compute_environment

SOURCES = Path(__file__).resolve().parents[1] / "src"


def flops(config: dict[str, Any], tokens: float, learned: float, length: float, method: str) -> float:
    """Useful FLOPs of `tokens` tokens, of which the share `learned` reaches the head, in examples of `length` tokens.

    2 per weight and token forward, 2 more for the activations' gradient, 2 more for the weights' in full fine-tuning.
    Attention: 2·d·L forward per token and layer (causal), 2.5 times that backward.
    """
    width, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or width // heads
    linear = layers * (width * size * (2 * heads + 2 * keys) + 3 * width * inner)
    head = config["vocab_size"] * width
    attention = 3.5 * 2 * layers * heads * size * length
    per_weight = 4 if method == "lora" else 6
    return tokens * (per_weight * (linear + learned * head) + attention)


class Products:
    """How fast this machine multiplies two matrices of 2048² in float32 and in bfloat16, timed between the steps of what is measured.

    Neighbours and heat change it within a second, by a factor of three on some machines. So what counts is the mean over the same time
    that the steps take; the fastest is kept beside it.
    """

    SIZE = 2048
    AT_ONCE = 3

    def __init__(self) -> None:
        import torch

        self.seconds: dict[str, list[float]] = {"float32": []}
        # processors without bfloat16 units take minutes for the large product, so a small one decides whether it is tried
        small = {dtype: min(self._time(256, dtype)) for dtype in (torch.float32, torch.bfloat16)}
        if small[torch.bfloat16] < small[torch.float32] / 0.3:
            self.seconds["bfloat16"] = []

    def time(self) -> None:
        """A few products in each format."""
        import torch

        for name, seconds in self.seconds.items():
            seconds += self._time(self.SIZE, getattr(torch, name))

    def rate(self, name: str) -> float:
        """FLOPs a second in this format, over all that was timed; 0 for a format that was not."""
        seconds = self.seconds.get(name)
        return 2 * self.SIZE**3 * len(seconds) / sum(seconds) if seconds else 0.0

    def fastest(self, name: str) -> float:
        """FLOPs a second of the fastest single product."""
        return 2 * self.SIZE**3 / min(self.seconds[name])

    @property
    def better(self) -> str:
        """The faster of the two formats."""
        return max(self.seconds, key=self.rate)

    def _time(self, size: int, dtype: Any) -> list[float]:
        """Seconds of some square products after one that does not count."""
        import torch

        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        torch.mm(a, b)
        marks = [time.perf_counter()]
        for _ in range(self.AT_ONCE):
            torch.mm(a, b)
            marks.append(time.perf_counter())
        return [end - begin for begin, end in itertools.pairwise(marks)]


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """Processor, cores, memory, versions."""
    import psutil
    import torch

    name = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {
        "processor": name,
        "vector": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "cores": cores(),
        "memory": psutil.virtual_memory().total,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def run_point(script: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One point of `script --point SETTINGS`, in a process with a worker's environment; what it prints last."""
    command = [sys.executable, str(script.resolve()), "--point", json.dumps(settings)]
    environment = {**compute_environment(cores()), "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the point {settings} failed: {done.stderr.strip().splitlines()[-1:]}")
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made
