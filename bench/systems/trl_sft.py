"""TRL's SFTTrainer as a system under measurement. Runs in an environment of its own; knows nothing of Afina."""

from __future__ import annotations

import json

from protocol import Turns


def main() -> None:
    """Train on the tokens given, in their order."""
    turns = Turns()
    given = turns.settings
    import torch
    from datasets import Dataset
    from gate import Gate
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(given["threads"])

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
        callbacks=[Gate(turns)],
    )
    trainer.train()
    turns.end()


if __name__ == "__main__":
    main()
