"""LLaMA-Factory's own training as a system under measurement, its defaults but for what must be equal.

Runs in an environment of its own; knows nothing of Afina.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from protocol import Turns

os.environ.setdefault("DISABLE_VERSION_CHECK", "1")


def main() -> None:
    """Train on the dataset given, read by LLaMA-Factory itself."""
    turns = Turns()
    given = turns.settings
    import torch
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    torch.set_num_threads(given["threads"])

    class Gate(TrainerCallback):
        """Waits for its turn, then tells how long a step took."""

        def __init__(self) -> None:
            self.begin = self.seconds = 0.0
            self.seen = 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if not turns.wait():
                turns.end()
            self.begin = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.seconds = time.perf_counter() - self.begin

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if logs and "loss" in logs:
                tokens = int(state.num_input_tokens_seen)
                turns.say(
                    step=state.global_step, seconds=self.seconds, tokens=tokens - self.seen, loss=float(logs["loss"])
                )
                self.seen = tokens

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
        callbacks=[Gate()],
    )
    turns.end()


if __name__ == "__main__":
    main()
