"""TRL's SFTTrainer as a system under measurement. Runs in an environment of its own; knows nothing of Afina."""

from __future__ import annotations

import json
import time
from typing import Any

from protocol import Turns


def main() -> None:
    """Train on the tokens given, in their order."""
    turns = Turns()
    given = turns.settings
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

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

    with open(given["tokens"], encoding="utf-8") as file:  # noqa: PTH123
        rows = json.load(file)
    dtype = getattr(torch, given["dtype"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=dtype)
    settings = {
        "output_dir": given["folder"],
        "per_device_train_batch_size": given["batch_size"],
        "gradient_accumulation_steps": given["accumulation"],
        "learning_rate": given["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_steps": given["steps"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "gradient_checkpointing": False,
        "max_length": given["max_length"],
        "packing": given["packing"],
        "bf16": given["autocast"],
        "use_cpu": True,
        "weight_decay": 0.0,
        "seed": 42,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "include_num_input_tokens_seen": "non_padding",
        "dataloader_pin_memory": False,
    }
    lora = LoraConfig(
        r=given["rank"],
        lora_alpha=2 * given["rank"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(given["model"]),
        peft_config=lora if given["method"] == "lora" else None,
        callbacks=[Gate()],
    )
    trainer.train()
    turns.end()


if __name__ == "__main__":
    main()
