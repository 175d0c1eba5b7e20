"""Base models: folders in `models/` in the Hugging Face layout, described without loading them (and without torch)."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from afina.core.files import read_json
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.registry.records import Explanation, ModelInfo
from afina.registry.tables import ModelRow

STARTER = "SmolLM2-135M-Instruct"
STARTER_ALIAS = "starter"


def base_models(home: Home, session: Session) -> list[ModelInfo]:
    """Every folder in `models/` as a record, by name. Folders that lack something are `broken` and say what."""
    if not home.models.is_dir():
        return []
    folders = sorted(
        (path for path in home.models.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: path.name.lower(),
    )
    found = [_cached(folder, session) for folder in folders]
    session.commit()
    return found


def _cached(folder: Path, session: Session) -> ModelInfo:
    mark = _fingerprint(folder)
    row = session.get(ModelRow, folder.name)
    if row is not None and row.fingerprint == mark:
        return ModelInfo(**row.info)
    info = describe(folder)
    if info.status == "ready":
        session.merge(ModelRow(id=folder.name, fingerprint=mark, info=info.model_dump(mode="json")))
    return info


def _fingerprint(folder: Path) -> str:
    """Names, sizes and times of the files in a folder, as a short text."""
    files = sorted((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    listed = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def describe(folder: Path) -> ModelInfo:
    """What a model folder says of itself: from `config.json`, the heads of its safetensors, tokenizer and notes."""
    config = _json(folder / "config.json")
    notes = _json(folder / "afina.json") or {}
    weights = sorted(folder.glob("*.safetensors"))
    problem = _problem(folder, config, weights)
    info = ModelInfo(
        id=folder.name,
        name=folder.name,
        aliases=[STARTER_ALIAS] if folder.name == STARTER else [],
        kind="base",
        source=notes.get("source"),
        licence=notes.get("licence") or _licence(folder),
        created=float(notes.get("created") or folder.stat().st_mtime),
        size=sum(path.stat().st_size for path in weights),
        status="broken" if problem else "ready",
        problem=problem,
    )
    if config is None:
        return info
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    info.architecture = next(iter(config.get("architectures") or []), config.get("model_type"))
    info.context_length = text.get("max_position_embeddings") or config.get("max_position_embeddings")
    info.parameters = sum(_parameters(path) for path in weights) or None
    tokenizer = _json(folder / "tokenizer_config.json") or {}
    info.has_chat_template = bool(tokenizer.get("chat_template")) or (folder / "chat_template.jinja").exists()
    return info


def _problem(folder: Path, config: dict[str, Any] | None, weights: list[Path]) -> Explanation | None:
    missing = [
        name
        for name, there in (
            ("config.json", config is not None),
            ("*.safetensors", bool(weights)),
            ("tokenizer.json", (folder / "tokenizer.json").exists()),
        )
        if not there
    ]
    if not missing:
        return None
    return Explanation.of(
        "model_incomplete",
        say(N_("The model's folder “{name}” lacks {files}."), name=folder.name, files=", ".join(missing)),
        say(N_("Delete the model and add it again.")),
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file, counted from the shapes in its head (a JSON object after 8 bytes of length)."""
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            head = json.loads(file.read(min(length, 100_000_000)))
        return sum(math.prod(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__")
    except (OSError, ValueError, struct.error, KeyError, TypeError):
        return 0


def _licence(folder: Path) -> str | None:
    """The licence named in the front matter of the model's README."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError:
        return None
    if not text.startswith("---"):
        return None
    for line in text.splitlines()[1:]:
        if line.startswith("---"):
            break
        key, _, value = line.partition(":")
        if key.strip() == "license" and value.strip():
            return value.strip().strip("\"'")
    return None
