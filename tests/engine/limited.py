"""A run under a real limit of memory: `python -m tests.engine.limited MODEL RUN_FOLDER MEGABYTES LENGTH BATCH ROWS`.

The limit is set before the model is loaded, so many megabytes above what the process holds then (0: none). Prints the events
as JSON lines, and `{"type": "error", "code": …}` when the run fails.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import peft  # noqa: F401  what is imported here is not counted
from transformers.models.llama import modeling_llama  # noqa: F401

from afina.core.spec import parse_spec
from afina.data.examples import Example, Turn
from afina.engine.device import is_out_of_memory
from afina.engine.loop import Job, fit


def limit(megabytes: int) -> None:
    status = Path("/proc/self/status").read_text()
    held = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    most = (held << 10) + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def main(model: str, folder: str, megabytes: str, length: str, batch: str, rows: str) -> None:
    Path(folder).mkdir()
    words = " ".join(str(number % 10) for number in range(int(length) // 2))
    examples = [Example((Turn("user", f"{row}?"), Turn("assistant", words))) for row in range(int(rows))]
    spec = {"model": "m", "dataset": "d", "batch_size": int(batch), "max_length": 4096, "precision": "float32", "device": "cpu",
            "epochs": 1, "learning_rate": 1e-3, "sample_prompts": ["0?"]}  # fmt: skip
    job = Job(parse_spec(spec), Path(model), Path(folder), examples, examples[:2])
    try:
        for event in fit(job):
            sys.stdout.write(json.dumps(event.as_json()) + "\n")
            if event.as_json().get("name") == "loading_model" and int(megabytes):
                limit(int(megabytes))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sys.stdout.write(json.dumps({"type": "error", "code": "out_of_memory"}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
