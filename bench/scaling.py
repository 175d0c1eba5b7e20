"""How speed and memory grow: over sequence length, over the number of rows, over the LoRA rank.

    .venv/bin/python bench/scaling.py [--lengths 256,512,1024,2048,4096] [--rows 1000,10000,100000,1000000]
                                      [--ranks 4,16,64] [--json]

Each point is a process of its own, so that its peak of memory is its own. Length and rank: a few LoRA steps of one example
of random tokens, or of about 2,048 tokens where examples are shorter. Rows: `afina datasets check` of a generated file of
that many Alpaca rows, seconds and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
from results import line_chart, save_chart
from train_speed import ROOT, starter

STEPS = 4
"""Steps of a point; the first does not count."""


def main() -> None:
    """Measure every point and print a table; with --json one line of JSON at the end."""
    if len(sys.argv) == 3 and sys.argv[1] == "--point":
        point(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a base model (default: the starter model)")
    parser.add_argument("--lengths", default="256,512,1024,2048,4096")
    parser.add_argument("--rows", default="1000,10000,100000,1000000")
    parser.add_argument("--ranks", default="4,16,64")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    note = sys.stderr if asked.json else sys.stdout
    model = asked.model or starter()
    found: dict[str, Any] = {"machine": machine.facts(), "model": model.name, "length": {}, "rank": {}, "rows": {}}
    for name, values in (("length", asked.lengths), ("rank", asked.ranks)):
        for value in numbers(values):
            made = machine.run_point(Path(__file__), {"model": str(model), "length": 2048, "rank": 16, name: value})
            found[name][value] = made
            print(
                f"{name} {value:>8}  {made['tokens_per_second']:8.0f} tokens/s  {made['memory'] / 1e9:6.2f} GB",
                file=note,
            )
    for value in numbers(asked.rows):
        made = check_rows(value)
        found["rows"][value] = made
        print(
            f"rows {value:>10}  {made['seconds']:8.2f} s  {made['memory'] / 1e9:6.2f} GB  {made['megabytes']:.0f} MB",
            file=note,
        )
    lines = {
        "memory, GB (length)": [(value, each["memory"] / 1e9) for value, each in found["length"].items()],
        "tokens/s ÷ 100 (length)": [
            (value, each["tokens_per_second"] / 100) for value, each in found["length"].items()
        ],
    }
    save_chart(
        "scaling", found, line_chart("Over the length of an example", "tokens", lines) if found["length"] else None
    )
    if asked.json:
        print(json.dumps(found))


def numbers(text: str) -> list[int]:
    """The numbers between commas."""
    return [int(part) for part in text.split(",") if part]


def point(settings: dict[str, Any]) -> None:
    """In the child: LoRA steps on random tokens; prints tokens a second and the peak of memory."""
    import torch

    from afina.engine import device, lora, memory, model, optim
    from afina.engine.batches import Item, lay_end_to_end, rows_of

    torch.set_num_threads(machine.cores())
    folder, cpu = Path(settings["model"]), torch.device("cpu")
    config = model.text_config(folder)
    dtype, _ = device.fastest_dtype(cpu, model.shapes(config), 1024)
    plain = model.load(folder, dtype, cpu)
    torch.manual_seed(1)
    wrapped = lora.attach(plain, rank=settings["rank"], alpha=32, dropout=0.0, targets=["all-linear"])
    network = model.Network(wrapped.get_base_model())
    trained = optim.Trained((name, each) for name, each in plain.named_parameters() if each.requires_grad)
    optimizer = optim.build("adamw", trained, 1e-4, 0.0)
    length = settings["length"]
    items = [
        Item(torch.randint(10, config.vocab_size, (length,), dtype=torch.int32), torch.arange(length) > 0)
        for _ in range(max(1, 2048 // length))
    ]
    tokens = sum(len(item) for item in items)
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        for row in rows_of(items, max(length, memory.MOST_TOKENS["cpu"])):
            network.backward(row, 1.0 / tokens)
        optim.step(optimizer, trained)
        network.weights_changed()
        trained.clear()
        seconds.append(time.perf_counter() - begin)
    assert len(lay_end_to_end(items)) == tokens
    rate = tokens * (STEPS - 1) / sum(seconds[1:])
    print(json.dumps({"tokens_per_second": rate, "memory": device.peak_memory(cpu), "precision": str(dtype)[6:]}))


def check_rows(count: int) -> dict[str, Any]:
    """`afina datasets check` of `count` generated rows, in a process of its own."""
    words = [
        "coffee",
        "hills",
        "Dili",
        "sea",
        "market",
        "Ermera",
        "sun",
        "people",
        "bondia",
        "obrigadu",
        "rice",
        "school",
    ]
    chance = random.Random(count)  # noqa: S311 - words, no secrets
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                said = " ".join(chance.choices(words, k=30))
                file.write(
                    json.dumps({"instruction": f"Question {number}: {said[:40]}?", "output": f"{said} {number}."})
                    + "\n"
                )
        command = [sys.executable, "-m", "afina.cli", "datasets", "check", str(path), "--json", "--home", folder]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        _, _, usage = os.wait4(process.pid, 0)
        return {
            "seconds": time.perf_counter() - begin,
            "memory": usage.ru_maxrss * 1024,
            "megabytes": path.stat().st_size / 1e6,
        }


if __name__ == "__main__":
    main()
