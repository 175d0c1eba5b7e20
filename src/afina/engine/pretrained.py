"""transformers' model of a folder, with every number it needs from the folder's own safetensors files.

transformers fills in what a file lacks with random numbers and says so in its log only; here that is an error. Reads no
other format and runs no code of the model's own.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from afina.core.compute import collector_at_rest
from afina.core.errors import AfinaError, Kind, Problem
from afina.core.messages import N_, Message, say
from afina.engine import device as devices
from afina.engine.folders import weight_files

BROKEN = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
"""What libraries raise for files that are not what they should be."""
NAMED = 3
INDEX = "model.safetensors.index.json"


@collector_at_rest()
def load(folder: Path, field: str = "model", **settings: Any) -> Any:
    """The model of `folder`; settings: for transformers' `from_pretrained`. Raises AfinaError `broken_model`, about `field`,
    and the allocator's error."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # other shapes are let through here because transformers would not say which
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False,
            ignore_mismatched_sizes=True, output_loading_info=True, **settings,
        )  # fmt: skip
    except BROKEN as error:
        if devices.is_out_of_memory(error):
            raise
        raise unloadable(folder, error, field) from error
    missing, other = sorted(found["missing_keys"]), sorted(name for name, *_ in found["mismatched_keys"])
    if missing:
        text = N_(
            "The weights of “{name}” are not complete: {file} lacks tensors that config.json asks for ({count}: {tensors})."
        )
        raise broken(_about(text, folder, missing), missing, field)
    if other:
        text = N_(
            "The weights of “{name}” do not belong to its config.json: in {file}, tensors have another shape ({count}: {tensors})."
        )
        raise broken(_about(text, folder, other), other, field)
    return model


def check(folder: Path, field: str) -> None:
    """Read the heads of the weights only, and raise what `load` would raise."""
    load(folder, field, device_map="meta")


def unloadable(folder: Path, error: BaseException, field: str = "model") -> AfinaError:
    """The error `broken_model` for what a library said of `folder`."""
    message = say(N_("The model “{name}” cannot be loaded: {reason}"), name=folder.name, reason=first_line(error))
    return AfinaError(Problem("broken_model", message, _remedy(field), field=field), _kind(field))


def broken(
    message: Message, tensors: Collection[str], field: str = "model", remedy: Message | None = None
) -> AfinaError:
    """The error `broken_model` for weights in which something is wrong with `tensors`."""
    problem = Problem("broken_model", message, remedy or _remedy(field), field=field, value=named(tensors))
    return AfinaError(problem, _kind(field))


def named(tensors: Collection[str]) -> str:
    """The first few of `tensors`."""
    first = ", ".join(list(tensors)[:NAMED])
    return first if len(tensors) <= NAMED else f"{first}, …"


def first_line(error: BaseException) -> str:
    """The first line of what `error` says."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _about(text: str, folder: Path, tensors: list[str]) -> Message:
    files = weight_files(folder)
    file = files[0].name if len(files) == 1 else INDEX
    return Message(text, {"name": folder.name, "file": file, "count": len(tensors), "tensors": named(tensors)})


def _remedy(field: str) -> Message:
    return say(N_("Download or copy it again.") if field == "source" else N_("Delete the model and add it again."))


def _kind(field: str) -> Kind:
    return "wrong_input" if field == "source" else "failed"
