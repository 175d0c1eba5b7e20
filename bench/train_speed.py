"""How fast one optimizer step is: real tokens a second, peak memory and the share of the machine's own rate (MFU).

    .venv/bin/python bench/train_speed.py --model ~/afina/models/SmolLM2-135M-Instruct --dataset examples/timor-leste.txt

Tokens are real input tokens (there is no padding to leave out), seconds those of the steps after the warm-up. MFU is
the useful work a second (2 FLOPs per weight and token forward, 2 more for the activations' gradient, 2 more for the
weights' in full fine-tuning; attention on top, as the design's engine page counts) over the rate of a 2048³ matrix
product measured right before, in the better of float32 and bfloat16. Ours alone: other trainers come beside it later.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from afina.core.events import Event, Preflight, Step
from afina.core.spec import parse_spec
from afina.data.examples import Example
from afina.data.readers import read


def main() -> None:
    """Run the benchmark and print a table, or one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a base model")
    parser.add_argument("--dataset", type=Path, required=True, help="a file afina reads without errors")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--batch-size", type=int, default=16, help="examples a step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm-up", type=int, default=3, help="first steps that do not count")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked)
    if asked.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:24} {value:.3f}" if isinstance(value, float) else f"{name:24} {value}")


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Train for a few steps and take the figures from the run's own events."""
    import torch

    from afina.engine.loop import Job, fit

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    examples = [item for item in read(asked.dataset) if isinstance(item, Example)]
    spec = parse_spec({
        "model": str(asked.model),
        "dataset": asked.dataset.name,
        "method": asked.method,
        "lora_rank": asked.rank,
        "batch_size": asked.batch_size,
        "max_steps": asked.steps,
        "epochs": 1000,
        "validation_share": 0,
        "save_every": asked.steps,
    }).resolved()  # fmt: skip
    rate = machine_rate()
    events: list[Event] = []
    ended: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        job = Job(spec=spec, model_folder=asked.model, run_folder=Path(folder), train=examples)
        for event in fit(job):
            events.append(event)
            if isinstance(event, Step):
                ended.append(event.tokens / event.tokens_per_second)
    steps = [event for event in events if isinstance(event, Step)]
    before = next(event for event in events if isinstance(event, Preflight))
    counted = steps[asked.warm_up :]
    seconds, tokens = sum(ended[asked.warm_up :]), sum(step.tokens for step in counted)
    config = json.loads((asked.model / "config.json").read_text(encoding="utf-8"))
    work = flops(config, tokens, before.answer_tokens / before.tokens, before.tokens / len(examples), asked.method)
    return {
        "method": asked.method,
        "tokens_per_second": tokens / seconds,
        "tokens_per_step": tokens / len(counted),
        "mfu": work / seconds / rate,
        "machine_gflops": rate / 1e9,
        "peak_memory_mb": max(step.memory for step in steps) / 1e6,
        "loss_last": steps[-1].loss,
        "precision": before.precision,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def flops(config: dict[str, Any], tokens: int, learned: float, length: float, method: str) -> float:
    """Useful FLOPs of `tokens` tokens, of which the share `learned` reaches the head, in examples of `length` tokens."""
    width, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or width // heads
    linear = layers * (width * size * (2 * heads + 2 * keys) + 3 * width * inner)
    head = config["vocab_size"] * width
    attention = 3.5 * 2 * layers * heads * size * length
    per_weight = 4 if method == "lora" else 6
    return tokens * (per_weight * (linear + learned * head) + attention)


def machine_rate() -> float:
    """FLOPs a second of a 2048³ matrix product, in the better of float32 and bfloat16.

    Processors without bfloat16 units take minutes for the large product, so a small one decides whether it is tried.
    """
    import torch

    best = product_rate(2048, torch.float32)
    if product_rate(256, torch.bfloat16) > 0.5 * product_rate(256, torch.float32):
        best = max(best, product_rate(2048, torch.bfloat16))
    return best


def product_rate(size: int, dtype: Any, rounds: int = 4) -> float:
    """FLOPs a second of a square product of `size` after one that does not count."""
    import torch

    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    torch.mm(a, b)
    begin = time.perf_counter()
    for _ in range(rounds):
        torch.mm(a, b)
    return rounds * 2 * size**3 / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
