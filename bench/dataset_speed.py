"""How fast a large JSONL file is checked, and in how much memory, beside Hugging Face's `datasets` on the same file.

    .venv/bin/python bench/dataset_speed.py --mb 1000 --peer /path/to/venv-with-datasets/bin/python

Ours is the command a person gives, `afina datasets check FILE`, which finds every error, repetition, near repetition,
secret and language; with `--model` it counts tokens too. The peer loads the file with `load_dataset` and maps a function
over it that looks for missing and empty texts and hashes each row, in as many processes; that is all it does. The file is
made here (seeded), and deleted unless `--keep` names a place for it. Memory is the sum of the resident sizes of all
processes, looked at 10 times a second; pages they share count once each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import results

TEXT = (
    "the of and to in a is that it for was on are with as his they at be this have from or had by not but what all were"
    " when we there can an your which their said if do will each about how up out them then she many some so these would"
    " other into has more her two like him see time could no make than first been its who now people my made over did down"
    " only way find use may water long little very after words called just where most know get through back much before"
    " also around another came come work three word must because does part even place well such here take why help put"
    " different away again off went old number great tell men say small every found still between name should home big"
    " give air line set own under read last never us left end along while might next sound below saw something thought"
)
WORDS = TEXT.split()
PEER = """
import hashlib, sys, tempfile
from datasets import load_dataset, disable_progress_bars
disable_progress_bars()

def look(row):
    texts = [row.get(name) or "" for name in ("instruction", "input", "output")]
    whole = "\\0".join(texts)
    return {"bad": not texts[0].strip() or not texts[2].strip(), "key": hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=cache)
        seen = rows.map(look, num_proc=int(sys.argv[2]))
        print(len(seen))
"""


def main() -> None:
    """Run the benchmark and print a table, or one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1000, help="size of the file made, in MB (10^6 bytes)")
    parser.add_argument("--model", type=Path, help="also count tokens as the model in this folder does")
    parser.add_argument("--peer", type=Path, help="a Python that has `datasets`, in an environment of its own")
    parser.add_argument("--keep", type=Path, help="make the file here, and leave it there")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked, Path(folder))
    if asked.mb >= 1000:
        results.save_chart("dataset_speed", found, None)
    if asked.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:24} {value:.2f}" if isinstance(value, float) else f"{name:24} {value}")


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the file, look through it in both ways."""
    path = asked.keep or folder / "rows.jsonl"
    rows = write(path, asked.mb * 1_000_000)
    size = path.stat().st_size / 1e6
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = [
        sys.executable,
        "-m",
        "afina.cli",
        "datasets",
        "check",
        str(path),
        "--json",
        "--home",
        str(folder / "home"),
    ]
    if asked.model:
        command += ["--model", str(asked.model)]
    said, seconds, processor, memory = watched(command)
    report = json.loads(said)
    assert report["rows"] == rows, report
    found: dict[str, Any] = {
        "machine": f"{cores} cores, {platform.machine()}, Python {platform.python_version()}",
        "file": f"{size:.0f} MB, {rows} rows",
        "afina_seconds": seconds,
        "afina_processor_seconds": processor,
        "afina_mb_per_second": size / seconds,
        "afina_memory_mb": memory,
        "afina_tokens": report["tokens"],
        "afina_tokens_estimated": report["estimated"],
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if asked.peer is None:
        return {**found, "datasets": "not measured: name a Python that has it with --peer"}
    said, seconds, processor, memory = watched([str(asked.peer), "-c", PEER, str(path), str(cores)])
    assert int(said) == rows, said
    return {
        **found,
        "datasets_seconds": seconds,
        "datasets_processor_seconds": processor,
        "datasets_mb_per_second": size / seconds,
        "datasets_memory_mb": memory,
    }


def write(path: Path, size: int) -> int:
    """Alpaca rows of 100 to 2,000 bytes, about `size` bytes in all; returns how many."""
    chance = random.Random(1)  # noqa: S311  not a secret
    rows = written = 0
    with path.open("w", encoding="ascii") as file:
        while written < size:
            rows += 1
            given = "" if chance.random() < 0.7 else text(chance, 40)
            answer = " ".join(text(chance, chance.randint(8, 25)) for _ in range(chance.randint(1, 12)))
            line = (
                json.dumps({"instruction": text(chance, chance.randint(6, 30)), "input": given, "output": answer})
                + "\n"
            )
            file.write(line)
            written += len(line)
    return rows


def text(chance: random.Random, words: int) -> str:
    """A sentence of so many words."""
    return " ".join(chance.choices(WORDS, k=words)).capitalize() + "."


def watched(command: list[str]) -> tuple[str, float, float, float]:
    """What the command prints, its seconds, the processor's seconds of all its processes, and their peak memory in MB."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        top = psutil.Process(process.pid)
        peak, used = 0, {}
        while process.poll() is None:
            total = 0
            try:
                for one in (top, *top.children(recursive=True)):
                    total += one.memory_info().rss
                    times = one.cpu_times()
                    used[one.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                pass  # it ended meanwhile
            peak = max(peak, total)
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        said = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return said, seconds, sum(used.values()), peak / 1e6


if __name__ == "__main__":
    main()
