"""What PyTorch finds on this machine, as one JSON object on stdout: `python -m afina.engine.facts`.

A process of its own, so that whoever asks need not import torch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch


def facts() -> dict[str, Any]:
    """Version, threads, the processor's vector instructions, and the devices besides the processor."""
    devices: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            devices.append({"kind": "cuda", "name": found.name, "memory": int(found.total_memory)})
    if torch.backends.mps.is_available():
        devices.append({"kind": "mps", "name": "Apple GPU", "memory": int(torch.mps.recommended_max_memory())})
    return {
        "version": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "devices": devices,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()) + "\n")
