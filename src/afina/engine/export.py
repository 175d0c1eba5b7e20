"""A LoRA result as a whole model that every other tool can load: the adapters merged into their base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from afina.data.template import ChatTokenizer
from afina.engine import model as models
from afina.engine import output


def export(
    model_folder: Path,
    adapters: Sequence[Path],
    destination: Path,
    *,
    chat_template: str = "auto",
    notes: dict[str, Any] | None = None,
) -> None:
    """Write `model_folder` with `adapters` merged, in order, to `destination`: safetensors, tokenizer, chat template.

    Merged in float32 and rounded once to the format of the base. Raises AfinaError `broken_model`, `adapter_mismatch`,
    and OSError.
    """
    chat = ChatTokenizer.load(model_folder, chat_template)
    merged = models.load(model_folder, torch.float32, torch.device("cpu"), adapters)
    told = {"base": str(model_folder), "merged": [str(path) for path in adapters], **(notes or {})}
    output.write_model(merged, None, destination, model_folder, chat, told)
