"""The result of a run as other tools read it: an adapter in PEFT's format, or a whole model as safetensors.

Either folder also holds the tokenizer and the chat template that was trained with.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from afina.core.files import sync_folder, write_json
from afina.data.template import ChatTokenizer
from afina.engine import tensorfile
from afina.engine.lora import ADAPTER, WEIGHTS

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def write_adapter(
    wrapped: Any, destination: Path, model_folder: Path, chat: ChatTokenizer, notes: dict[str, Any]
) -> None:
    """The adapter of PEFT's model `wrapped`, in place of whatever is at `destination`. Raises OSError."""
    import peft

    part = _part(destination)
    tensors = peft.get_peft_model_state_dict(wrapped, adapter_name=ADAPTER, save_embedding_layers=False)
    tensorfile.write(part / WEIGHTS, tensors)
    config = wrapped.peft_config[ADAPTER]
    config.base_model_name_or_path = str(model_folder)
    config.inference_mode = True
    config.save_pretrained(str(part))
    config.inference_mode = False
    _finish(part, destination, model_folder, chat, notes)


def write_model(
    model: Any,
    weights: dict[str, torch.Tensor] | None,
    destination: Path,
    model_folder: Path,
    chat: ChatTokenizer,
    notes: dict[str, Any],
) -> None:
    """The whole model, in the number format its base was stored in. Raises OSError.

    weights: float32 masters by name, rounded here once; None takes the model's own.
    """
    part = _part(destination)
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name).removeprefix("torch."), torch.float32)
    tensorfile.write(part / "model.safetensors", _as_stored(model, weights or {}), dtype)
    before, model.config.dtype = model.config.dtype, dtype
    model.config.save_pretrained(str(part))
    model.config.dtype = before
    if model.can_generate():
        model.generation_config.save_pretrained(str(part))
    generation = part / "generation_config.json"
    told = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    write_json(generation, {**told, "eos_token_id": sorted(chat.stop_ids)})
    for pattern in LICENCE_FILES:
        for file in model_folder.glob(pattern):
            shutil.copy(file, part / file.name)
    _finish(part, destination, model_folder, chat, notes)


def _as_stored(model: Any, masters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of `model` under the names they have in files, tied ones once; masters: taken in their place."""
    from transformers.core_model_loading import revert_weight_conversion

    own, ties = model.state_dict(), model.all_tied_weights_keys
    state = {
        name: masters.get(name, tensor)
        for name, tensor in own.items()
        if name not in ties or tensor.data_ptr() != own[ties[name]].data_ptr()
    }
    converted: dict[str, torch.Tensor] = revert_weight_conversion(model, state)
    return converted


def _part(destination: Path) -> Path:
    part = destination.with_name(f".{destination.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def _finish(part: Path, destination: Path, model_folder: Path, chat: ChatTokenizer, notes: dict[str, Any]) -> None:
    for name in TOKENIZER_FILES:
        if (model_folder / name).is_file():
            shutil.copy(model_folder / name, part / name)
    (part / "chat_template.jinja").write_text(chat.source, encoding="utf-8")
    write_json(part / "afina.json", notes)
    shutil.rmtree(destination, ignore_errors=True)
    part.rename(destination)
    sync_folder(destination.parent)
