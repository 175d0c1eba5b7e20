"""A home with a model that needs no torch, a dataset, and quick runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afina import actions
from afina.core.events import ENDED
from afina.core.paths import Home
from afina.registry.records import RunInfo
from afina.runs.supervisor import Supervisor
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
FAKE = "tests.runs.fake_worker"
os.environ["PYTHONPATH"] = str(ROOT)  # a worker's working folder is its run; the fake one lives here


def furnish(home: Home) -> Home:
    """Put a model of two numbers and a dataset of twelve rows into a home."""
    folder = home.models / "small"
    size = tiny.build_tokenizer(folder)
    shapes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2}
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": size, "max_position_embeddings": 128, **shapes}
    (folder / "config.json").write_text(json.dumps(config))
    head = json.dumps({"w": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(8))
    rows = [{"instruction": f"What is {n}?", "output": f"A number, {n}."} for n in range(12)]
    (home.datasets / "numbers.json").write_text(json.dumps(rows))
    return home


def start(home: Home, name: str | None = None, **behaviour: Any) -> RunInfo:
    """Queue a run that the fake worker will do as told."""
    spec = {"model": "small", "dataset": "numbers.json", "notes": json.dumps(behaviour), "name": name}
    return actions.start_run(home, spec)


def supervisor(home: Home, stop_grace: float = 60.0) -> Supervisor:
    return Supervisor(home, stop_grace, worker=FAKE)


def until(condition: Callable[[], Any], tick: Callable[[], Any] = lambda: None, timeout: float = 20.0) -> Any:
    """Wait for something to become true, looking (and ticking) all the time."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        tick()
        time.sleep(0.02)
    return found


def finish(home: Home, run: RunInfo, keeper: Supervisor | None = None, timeout: float = 20.0) -> RunInfo:
    """Look after the home until the run is over and settled."""
    keeper = keeper or supervisor(home)
    until(lambda: actions.get_run(home, run.id).status in ENDED, keeper.tick, timeout)
    until(lambda: keeper.settled(run.id), timeout=timeout)
    return actions.get_run(home, run.id)


def server(home: Home) -> subprocess.Popen[str]:
    """A process that looks after the home."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runs.fake_server", str(home.root)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, now."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def steps(home: Home, run: RunInfo) -> list[int]:
    events, _ = actions.run_events(home, run.id)
    return [event["step"] for event in events if event["type"] == "step"]
