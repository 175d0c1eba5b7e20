"""LLaMA-Factory's own training as a system under measurement, its defaults but for what must be equal.

Runs in an environment of its own; knows nothing of Afina.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from protocol import Turns

os.environ.setdefault("DISABLE_VERSION_CHECK", "1")
# It imports torchaudio for sound, which this bench has none of, and which has no file for this PyTorch.
_SILENT = ModuleType("torchaudio")
_SILENT.__spec__ = ModuleSpec("torchaudio", None)
sys.modules.setdefault("torchaudio", _SILENT)


def main() -> None:
    """Train on the dataset given, read by LLaMA-Factory itself."""
    turns = Turns()
    given = turns.settings
    import torch
    from gate import Gate
    from llamafactory.train.tuner import run_exp

    torch.set_num_threads(given["threads"])

    folder = Path(given["folder"])
    (folder / "dataset_info.json").write_text(json.dumps({"bench": {"file_name": given["dataset"]}}))
    run_exp(
        {
            "model_name_or_path": given["model"],
            "stage": "sft",
            "do_train": True,
            "finetuning_type": given["method"],
            "lora_rank": given["rank"],
            "lora_alpha": 2 * given["rank"],
            "lora_target": "all",
            "dataset": "bench",
            "dataset_dir": str(folder),
            "template": "default",
            "cutoff_len": given["max_length"],
            "output_dir": str(folder / "out"),
            "per_device_train_batch_size": given["batch_size"],
            "gradient_accumulation_steps": given["accumulation"],
            "learning_rate": given["learning_rate"],
            "lr_scheduler_type": "constant",
            "max_steps": given["steps"],
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": given["autocast"],
            "use_cpu": True,
            "include_num_input_tokens_seen": "non_padding",
        },
        callbacks=[Gate(turns)],
    )
    turns.end()


if __name__ == "__main__":
    main()
