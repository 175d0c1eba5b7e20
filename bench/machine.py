"""What the machine at hand can do, and what a training step asks of it: rates, useful work, facts for the records."""

from __future__ import annotations

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


def rates() -> dict[str, float]:
    """FLOPs a second of a 2048³ matrix product in float32 and in bfloat16.

    Processors without bfloat16 units take minutes for the large product, so a small one decides whether it is tried.
    """
    import torch

    found = {"float32": _product_rate(2048, torch.float32)}
    if _product_rate(256, torch.bfloat16) > 0.3 * _product_rate(256, torch.float32):
        found["bfloat16"] = _product_rate(2048, torch.bfloat16)
    return found


def _product_rate(size: int, dtype: Any, rounds: int = 5) -> float:
    """The fastest of a few square products after one that does not count."""
    import torch

    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    torch.mm(a, b)
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


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
