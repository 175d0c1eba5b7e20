"""What a model folder says about itself, and whether it can be trusted and trained. Reads headers only, never weights."""

from __future__ import annotations

import json
import re
import struct
from math import prod
from pathlib import Path
from typing import Any

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of the model in `folder`. Raises AfinaError `not_a_model`."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AfinaError(_not_a_model(folder)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AfinaError(_not_a_model(folder, str(error))) from None
    if not isinstance(config, dict):
        raise AfinaError(_not_a_model(folder))
    return config


def inspect_folder(folder: Path) -> dict[str, Any]:
    """Look a model folder through before anything of it is used; returns its config.

    Raises AfinaError with every problem found: `not_a_model`, `is_an_adapter`, `unsafe_weights`,
    `unknown_architecture`, `quantised_weights`, `broken_weights`, `no_tokenizer`.
    """
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise AfinaError(
            Problem(
                "is_an_adapter",
                say(N_("“{name}” is a LoRA adapter, not a whole model."), name=folder.name),
                say(N_("Add the base model it was trained on.")),
                field="source",
                value=str(folder),
            )
        )
    config = read_config(folder)
    problems = [*_architecture_problems(config), *_weight_problems(folder), *_tokenizer_problems(folder)]
    if problems:
        raise AfinaError(problems)
    return config


def check_config(folder: Path) -> None:
    """Refuse a model by its `config.json` alone, before its weights are downloaded.

    Raises AfinaError `not_a_model`, `unknown_architecture`, `quantised_weights`.
    """
    if problems := _architecture_problems(read_config(folder)):
        raise AfinaError(problems)


def _architecture_problems(config: dict[str, Any]) -> list[Problem]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    problems = []
    kind = config.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        problems.append(
            Problem(
                "unknown_architecture",
                say(N_("The architecture “{kind}” is not one this program can train."), kind=str(kind)),
                say(
                    N_(
                        "Take a causal language model that transformers knows: Llama, Qwen, Mistral, Gemma and many others."
                    )
                ),
                field="source",
                value=kind,
            )
        )
    if config.get("quantization_config"):
        problems.append(
            Problem(
                "quantised_weights",
                say(N_("The weights of this model are quantised; they cannot be trained.")),
                say(N_("Take the original model, before quantisation.")),
                field="source",
            )
        )
    return problems


def _weight_problems(folder: Path) -> list[Problem]:
    files = weight_files(folder)
    if not files and any(next(folder.glob(pattern), None) for pattern in PICKLES):
        return [
            Problem(
                "unsafe_weights",
                say(N_("The weights are in a format that can run programs when it is opened (pickle).")),
                say(N_("Take the same model with safetensors files.")),
                field="source",
                value=str(folder),
            )
        ]
    if not files:
        return [_not_a_model(folder)]
    problems = []
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        problems += [
            _broken(name, say(N_("the file is missing"))) for name in sorted(named - {path.name for path in files})
        ]
    for path in files:
        try:
            header(path)
        except (ValueError, struct.error) as error:
            problems.append(_broken(path.name, str(error)))
    return problems


def _broken(name: str, reason: Any) -> Problem:
    return Problem(
        "broken_weights",
        say(N_("The weights file “{name}” is not complete: {reason}."), name=name, reason=str(reason)),
        say(N_("Download or copy it again.")),
        field="source",
        value=name,
    )


def _tokenizer_problems(folder: Path) -> list[Problem]:
    known = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "*.tiktoken")
    if any(next(folder.glob(name), None) for name in known):
        return []
    return [
        Problem(
            "no_tokenizer",
            say(N_("“{folder}” has no tokenizer.json."), folder=folder.name),
            say(N_("Copy the tokenizer's files of this model into the folder.")),
            field="source",
        )
    ]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, sorted; those of adapters left out."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter"))


def header(path: Path) -> dict[str, Any]:
    """The head of a safetensors file: name → dtype, shape, offsets. Raises ValueError for a file that is cut short."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size, 100 << 20):
            raise ValueError("its head is damaged")
        head = json.loads(file.read(length))
    head.pop("__metadata__", None)
    end = max((item["data_offsets"][1] for item in head.values()), default=0)
    if 8 + length + end != size:
        raise ValueError(f"{size} bytes, expected {8 + length + end}")
    return dict(head)


def parameters_of(folder: Path) -> int:
    """How many numbers the weights hold (tied ones once). Raises AfinaError `broken_weights`."""
    total = 0
    for path in weight_files(folder):
        try:
            total += sum(prod(item["shape"]) for item in header(path).values())
        except (ValueError, struct.error) as error:
            raise AfinaError(_broken(path.name, str(error)), "failed") from error
    return total


def licence_of(folder: Path) -> str | None:
    """The licence as the model's config or the head of its README states it, None when neither does."""
    stated = read_config(folder).get("license")
    readme = folder / "README.md"
    if not stated and readme.is_file():
        found = re.match(
            r"---\n(?:.*\n)*?license:\s*['\"]?([^\s'\"]+)", readme.read_text(encoding="utf-8", errors="replace")
        )
        stated = found.group(1) if found else None
    return str(stated) if stated else None


def _not_a_model(folder: Path, reason: str = "") -> Problem:
    if reason:
        message = say(N_("The config.json of “{name}” cannot be read: {reason}"), name=folder.name, reason=reason)
    else:
        message = say(
            N_("“{name}” is not a model: config.json or the safetensors files are missing."), name=folder.name
        )
    return Problem(
        "not_a_model",
        message,
        say(N_("Give a folder with config.json and safetensors files, or a file that ends in .gguf.")),
        field="source",
        value=str(folder),
    )
