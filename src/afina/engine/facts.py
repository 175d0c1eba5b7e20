"""What PyTorch finds on this machine, as one JSON object on stdout: `python -m afina.engine.facts`.

A process of its own, so that whoever asks need not import torch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from afina.engine import device as devices


def facts() -> dict[str, Any]:
    """Version, threads, the processor's vector instructions, and the devices besides the processor."""
    return {
        "version": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "devices": devices.found(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()) + "\n")
