"""A run under a real limit of memory: `python -m tests.engine.limited MODEL RUN_FOLDER MEGABYTES LENGTH BATCH ROWS [WHEN [WHAT [MORE]]]`.

The limit is set when WHEN happens, so many megabytes above what the process holds then (0: none): "preflight" (the longest row
was computed), "loading_model" or "sampling" (such a phase begins). WHAT is limited: "data" (what is written to) or
"addresses" (all that is mapped). MORE: settings, as JSON. Where the precision is left open, float32 is the faster one. Prints the events as JSON lines, and
`{"type": "error", "code": …, "message": …}` when the run fails.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import peft  # noqa: F401
import torch
from transformers.models.llama import modeling_llama  # noqa: F401  not to be loaded within the limit

from afina.core.errors import AfinaError
from afina.core.parsing import parse_spec
from afina.data.examples import Example, Turn
from afina.engine import device as devices
from afina.engine.loop import Job, fit


def limit(megabytes: int, what: str) -> None:
    line, kind = ("VmData", resource.RLIMIT_DATA) if what == "data" else ("VmSize", resource.RLIMIT_AS)
    status = Path("/proc/self/status").read_text()
    held = next(int(each.split()[1]) for each in status.splitlines() if each.startswith(line))
    most = (held << 10) + (megabytes << 20)
    resource.setrlimit(kind, (most, resource.RLIM_INFINITY))


def main(
    model: str,
    folder: str,
    megabytes: str,
    length: str,
    batch: str,
    rows: str,
    when: str = "loading_model",
    what: str = "data",
    more: str = "{}",
) -> None:
    Path(folder).mkdir()
    words = " ".join(str(number % 10) for number in range(int(length) // 2))
    examples = [Example((Turn("user", f"{row}?"), Turn("assistant", words))) for row in range(int(rows))]
    spec = {"model": "m", "dataset": "d", "batch_size": int(batch), "max_length": 4096, "precision": "float32", "device": "cpu",
            "epochs": 1, "learning_rate": 1e-3, "sample_prompts": ["0?"], **json.loads(more)}  # fmt: skip
    job = Job(parse_spec(spec), Path(model), Path(folder), examples, examples[:2])
    devices.fastest_dtype = lambda *measured: (torch.float32, 1e10)
    try:
        for event in fit(job):
            sys.stdout.write(json.dumps(event.as_json()) + "\n")
            if when in (event.type, getattr(event, "name", None)) and int(megabytes):
                limit(int(megabytes), what)
                megabytes = "0"
    except AfinaError as error:
        say_error(error.code, str(error))
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        say_error("out_of_memory", "")


def say_error(code: str, message: str) -> None:
    sys.stdout.write(json.dumps({"type": "error", "code": code, "message": message}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
