"""Models of the hub, `hub:owner/name[@revision]`: looked up, pinned to a commit, downloaded into huggingface_hub's cache.

The library reads from its cache without a network; `download.py` goes on with what was interrupted. Only weights in safetensors (or the one
GGUF file), what describes them, the tokenizer and the licence are fetched; nothing that could be executed.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from afina.core.errors import AfinaError, Problem
from afina.core.hub import PREFIX, asking
from afina.core.messages import N_, say
from afina.runs.download import LARGE, bring

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "*.tiktoken")
PAPERS = ("LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "README.md")
DESCRIPTION = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer*.json", "vocab.txt", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template*.jinja", "chat_template*.json", *TOKENIZERS, *PAPERS,
)  # fmt: skip
WEIGHTS = "*.safetensors"
GGUF = "*.gguf"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PATIENCE = 10.0
"""Seconds to wait for an answer to a question; a person waits too."""

_NAME = re.compile(r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]{1,200}))?")


@dataclass(frozen=True)
class Reference:
    """A repository, and a branch, tag or commit of it."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, source: str) -> Reference:
        """From `hub:owner/name[@revision]`. Raises AfinaError `bad_name`."""
        match = _NAME.fullmatch(source.removeprefix(PREFIX))
        if match is None or ".." in source:
            message = say(N_("“{name}” is not the name of a model of the hub."), name=source[:200])
            remedy = say(N_("Write hub:owner/name or hub:owner/name@revision."))
            raise AfinaError(Problem("bad_name", message, remedy, "source", source[:200]))
        return cls(match["repo"], match["revision"])

    @property
    def name(self) -> str:
        """The name without its owner."""
        return self.repo.partition("/")[2]

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Listing:
    """A reference pinned to its commit, and the files to fetch with their sizes (0 where the hub tells none)."""

    reference: Reference
    files: dict[str, int]

    def only(self, name: str) -> Listing | None:
        """The one file `name` of it, None where it is not among them."""
        return Listing(self.reference, {name: self.files[name]}) if name in self.files else None


def look(reference: Reference) -> Listing:
    """Ask the hub, or where it does not answer the cache, which commit is meant and what belongs to the model.

    Raises AfinaError `no_network`, `not_found`, `terms_not_accepted`, `unsafe_weights`, `several_gguf`, `is_an_adapter`,
    `not_a_model`, `no_tokenizer`.
    """
    pinned = _pin(reference)
    try:
        sizes = _ask(pinned)
    except AfinaError as away:
        if away.kind != "unavailable":
            raise
        sizes = _remember(pinned)
        try:
            names = choose(pinned.repo, list(sizes))
        except AfinaError:
            raise away from None  # what is missing in the cache may be on the hub
    else:
        names = choose(pinned.repo, list(sizes))
    return Listing(pinned, {name: sizes[name] for name in names})


def fetch(listing: Listing, tell: Callable[[float], None]) -> Path:
    """Download what is not in the cache yet, telling the share of bytes that is here; the folder, or the GGUF file, of the model.

    Raises AfinaError `no_network`, `not_found`, `terms_not_accepted`, `no_space`, `no_disk_space`, `cannot_write`.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    repo, commit = listing.reference.repo, str(listing.reference.revision)
    missing = {
        name: size
        for name, size in listing.files.items()
        if not isinstance(try_to_load_from_cache(repo, name, revision=commit), str)
    }
    total, done = sum(missing.values()), 0
    _require_space(total)
    with _asking(listing.reference):
        for name, size in missing.items():
            if size >= LARGE:
                bring(repo, commit, name, _counter(total, done, tell))
                done += size
        exactly = [re.sub(r"([*?\[])", r"[\1]", name) for name in listing.files]
        bar = _counter(total, done, tell)
        folder = snapshot_download(repo, revision=commit, allow_patterns=exactly, tqdm_class=bar)
    gguf = next((name for name in listing.files if fnmatch(name, GGUF)), None)
    return Path(folder, gguf) if gguf else Path(folder)


def choose(repo: str, names: list[str]) -> list[str]:
    """The files of a repository that make up the model. Raises AfinaError; see `look`."""
    top = sorted(name for name in names if "/" not in name)
    weights = [name for name in _matching(top, (WEIGHTS,)) if not name.startswith("adapter")]
    # some repositories hold the same weights a second time, in their makers' own layout
    weights = [name for name in weights if name.startswith("model")] or weights
    ggufs = _matching(top, (GGUF,))
    whole = bool(weights) and "config.json" in top
    if whole and _matching(top, TOKENIZERS):
        return sorted({*weights, *_matching(top, DESCRIPTION)})
    if len(ggufs) == 1 and not whole:
        return sorted({*ggufs, *_matching(top, PAPERS)})
    raise AfinaError(_why_not(repo, top, whole=whole, ggufs=ggufs))


def _why_not(repo: str, top: list[str], *, whole: bool, ggufs: list[str]) -> Problem:
    """What a repository lacks, before anything of it is downloaded; the same codes as `engine.folders`."""
    value = f"{PREFIX}{repo}"
    if "adapter_config.json" in top and "config.json" not in top:
        message = say(N_("“{name}” is a LoRA adapter, not a whole model."), name=repo)
        return Problem("is_an_adapter", message, say(N_("Add the base model it was trained on.")), "source", value)
    if whole:
        message = say(N_("“{folder}” has no tokenizer.json."), folder=repo)
        return Problem("no_tokenizer", message, say(N_("Take a model that comes with its tokenizer.")), "source", value)
    if ggufs:
        message = say(N_("“{name}” has several GGUF files: {files}."), name=repo, files=", ".join(ggufs))
        remedy = say(N_("Download one of them with “hf download {name} FILE”, and add it by its path."), name=repo)
        return Problem("several_gguf", message, remedy, "source", value)
    if _matching(top, PICKLES) and not _matching(top, (WEIGHTS,)):
        message = say(N_("The weights are in a format that can run programs when it is opened (pickle)."))
        return Problem(
            "unsafe_weights", message, say(N_("Take the same model with safetensors files.")), "source", value
        )
    message = say(N_("“{name}” is not a model: config.json or the safetensors files are missing."), name=repo)
    remedy = say(N_("Take a model with config.json and safetensors files."))
    return Problem("not_a_model", message, remedy, "source", value)


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def _pin(reference: Reference) -> Reference:
    """The same at its commit, as the hub says, or where it does not answer as the cache remembers."""
    from huggingface_hub import HfApi

    with _asking(reference):
        found = HfApi().resolve_revision(reference.repo, revision=reference.revision)
    return Reference(reference.repo, found.resolved)


def _ask(pinned: Reference) -> dict[str, int]:
    """All files with their sizes, as the hub says."""
    from huggingface_hub import HfApi

    with _asking(pinned):
        told = HfApi().model_info(pinned.repo, revision=pinned.revision, files_metadata=True, timeout=PATIENCE)
    return {file.rfilename: file.size or 0 for file in told.siblings or []}


def _remember(pinned: Reference) -> dict[str, int]:
    """The files that are in the cache, where they are complete."""
    from huggingface_hub import snapshot_download

    with _asking(pinned):
        folder = snapshot_download(
            pinned.repo,
            revision=pinned.revision,
            local_files_only=True,
            allow_patterns=[WEIGHTS, *DESCRIPTION],
            ignore_patterns=["*/*", "adapter*", "consolidated*"],
        )
    return {path.name: path.stat().st_size for path in Path(folder).iterdir() if path.is_file()}


def _require_space(size: int) -> None:
    """Refuse before the disk is full, with a little left for everyone else."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < size + (64 << 20):
        message = say(
            N_("Not enough space on the disk: {needed} MB are needed, {free} MB are free."),
            needed=size >> 20,
            free=free >> 20,
        )
        raise AfinaError(Problem("no_space", message, say(N_("Free some space and add the model again."))), "failed")


def _asking(reference: Reference) -> AbstractContextManager[None]:
    name, value = reference.repo, str(reference)
    absent = say(
        N_("The hub has no model “{name}” that can be read without an account."), name=value.removeprefix(PREFIX)
    )
    look = say(N_("Look at the name on the hub's page; private models need a login with “hf auth login”."))
    away = say(N_("The model “{name}” is not on this machine, and the hub cannot be reached."), name=name)
    later = say(N_("Try again when there is a network; what was downloaded is kept. Or add a folder or a GGUF file."))
    closed = say(N_("The model “{name}” is given only to those who have accepted its terms."), name=name)
    accept = say(N_("Accept them on its page on the hub, log in with “hf auth login”, and add it again."))
    return asking(
        Problem("not_found", absent, look, "source", value),
        Problem("no_network", away, later, "source", value),
        Problem("terms_not_accepted", closed, accept, "source", value),
    )


def _counter(total: int, done: int, tell: Callable[[float], None]) -> type[Any]:
    """A progress bar that is not drawn but tells the share of `total` bytes, `done` of them before it; the library has such
    bars for bytes and for files."""
    from tqdm.std import tqdm

    class Counter(tqdm):  # type: ignore[misc]
        monitor_interval = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            result = super().update(n)
            if self.unit == "B" and total:
                tell(min(1.0, (done + self.n) / total))
            return result  # type: ignore[no-any-return]

    return Counter
