"""How long a run takes from the command to its first step, phase by phase: the first start, and later ones.

    .venv/bin/python bench/start_time.py [--dataset FILE] [--rounds 3] [--json]

`afina train` as people run it (a LoRA of the starter model, all settings as they are but the number of steps), in a home of
its own. The first start on a dataset makes its tokens and asks the untrained model; later ones, with another learning
rate, find both. Times come from the events of the run; the last column is the median of the later starts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
from results import bar_chart, save_chart

from afina.core.compute import thread_count
from afina.core.paths import Home
from afina.runs.log import EventLog

SAMPLE = Path(__file__).resolve().parents[1] / "examples"
STEPS = 675
"""As many as three passes over the 999 Alpaca pairs have; the run is stopped after the first."""
MARKS = ("queued", "starting", "reading_data", "loading_model", "preflight", "sampling", "evaluating", "step")
MEANS = {
    "queued": "command: imports, checks, run folder",
    "starting": "what is left of PyTorch, begun meanwhile",
    "reading_data": "what is left of the engine",
    "loading_model": "tokenizer and tokens",
    "preflight": "transformers, PEFT, model, longest row",
    "sampling": "",
    "evaluating": "answers before training",
    "step": "validation loss before training, first step",
}


def main() -> None:
    """Print the figures; with --json one line of JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", type=Path, help="a file of training examples (default: the sample about Timor-Leste)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="starts after the first")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    dataset = asked.dataset or next(SAMPLE.rglob("timor*"))
    with tempfile.TemporaryDirectory(prefix="afina-start-") as folder:
        home = Home(Path(folder))
        subprocess.run([*afina("models", "add", "starter", home=home)], check=True, stdout=sys.stderr)
        starts = [start(home, dataset, number) for number in range(asked.rounds + 1)]
    first, later = starts[0], starts[1:]
    found = {
        "first_start": round(first["step"], 2),
        "second_start": round(statistics.median(each["step"] for each in later), 2),
        "slowest_later_start": round(max(each["step"] for each in later), 2),
        "from_worker": round(statistics.median(each["step"] - each["starting"] for each in later), 2),
        "phases": [phases(each) for each in starts],
        "dataset": dataset.name,
        "threads": thread_count(),
        "machine": machine.facts(),
    }
    bars = [("afina, first start", found["first_start"]), ("afina, later starts", found["second_start"])]
    save_chart("start_time", found, bar_chart("Seconds from the command to the first step", bars))
    note = sys.stderr if asked.json else sys.stdout
    print(f"{'seconds':44}{'first':>8}{'later':>8}", file=note)
    for name, meaning in MEANS.items():
        if meaning:
            middle = statistics.median(each[name] for each in found["phases"][1:])
            print(f"{meaning:44}{found['phases'][0][name]:8.2f}{middle:8.2f}", file=note)
    print(f"{'command to first step':44}{found['first_start']:8.2f}{found['second_start']:8.2f}", file=note)
    if asked.json:
        print(json.dumps(found))


def afina(*words: str, home: Home) -> list[str]:
    """The command."""
    return [sys.executable, "-m", "afina.cli", *words, "--home", str(home.root)]


def start(home: Home, dataset: Path, number: int) -> dict[str, float]:
    """Start a run, stop it after its first step; seconds from the command to each mark."""
    settings = ["--model", "SmolLM2-135M-Instruct", "--dataset", str(dataset), "--max-steps", str(STEPS)]
    rate = ["--learning-rate", str(1e-4 + number * 1e-6)]
    before = set(home.runs.glob("2*"))
    begin = time.time()
    process = subprocess.Popen(
        afina("train", *settings, *rate, home=home), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ
    )
    marks: dict[str, float] = {}
    while "step" not in marks:
        if process.poll() is not None:
            raise SystemExit(f"the run ended before its first step: {(process.stderr or sys.stdin).read()!r}")
        time.sleep(0.1)
        for run in set(home.runs.glob("2*")) - before:
            marks = seen(EventLog(run).all(), begin)
    (run,) = set(home.runs.glob("2*")) - before
    (run / "stop.json").write_text('{"keep": "last"}')
    process.communicate(timeout=300)
    return marks


def seen(events: list[dict[str, Any]], begin: float) -> dict[str, float]:
    """When each mark came first, in seconds."""
    marks: dict[str, float] = {}
    for event in events:
        name = event["name"] if event["type"] == "phase" else event["type"]
        if name in MARKS:
            marks.setdefault(name, event["time"] - begin)
    return marks


def phases(marks: dict[str, float]) -> dict[str, float]:
    """Seconds up to each mark from the one before it."""
    there = [name for name in MARKS if name in marks]
    earlier = [0.0, *(marks[name] for name in there)]
    return {name: round(marks[name] - since, 3) for name, since in zip(there, earlier, strict=False)}


if __name__ == "__main__":
    main()
