"""Finished runs made by hand, so that pages have fine-tuned models to show without waiting for a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from afina.core.paths import Home
from afina.core.spec import DatasetPart, TrainSpec


def make_run(home: Home, run: str, name: str, base: Path, parent: str | None = None, weights: bool = True) -> Path:
    """A run folder as a finished LoRA run leaves it, trained from `base` or from the run `parent`; returns its adapter.

    Call it before anything opens the home's index. The adapter's weights are random, so it answers unlike its base;
    without `weights` it is only there to be listed.
    """
    created = 1e9 + len(list(home.runs.iterdir())) * 86_400
    folder = home.runs / run
    folder.mkdir(parents=True)
    before = [home.runs / parent / "adapter"] if parent else []
    spec = TrainSpec(model=parent or base.name, dataset=[DatasetPart(name="sums.json")])
    origin = {
        "id": parent or base.name,
        "folder": str(home.models / base.name),
        "adapters": [str(path) for path in before],
        "ancestors": [parent] if parent else [],
    }
    part = {"name": "sums.json", "weight": 1.0, "sha256": "0" * 64, "format": "alpaca", "rows": 40}
    manifest = {"run": run, "name": name, "home": str(home.root), "model": origin, "datasets": [part]}
    events: list[dict[str, Any]] = [
        {"type": "phase", "name": "training"},
        {"type": "step", "step": 1, "total_steps": 1, "loss": 2.25},
        {"type": "finished", "step": 1, "output": "adapter", "train_loss": 2.25, "validation_loss": 2.5},
    ]
    lines = [json.dumps({"seq": seq, "time": created + seq, **event}) for seq, event in enumerate(events, 1)]
    plain = spec.resolved().model_dump(mode="json")
    (folder / "spec.json").write_text(json.dumps(plain), encoding="utf-8")
    more: dict[str, Any] = {"validation": None, "versions": {}, "machine": {}, "created": created}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **more}), encoding="utf-8")
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "adapter").mkdir()
    if weights:
        _save_adapter(base, folder / "adapter")
    return folder / "adapter"


def _save_adapter(base: Path, folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(str(folder))
