"""Datasets of the hub, `hub:owner/name[:split]`: brought into the datasets folder, as a folder of files.

Downloaded through huggingface_hub, which resumes, keeps a cache and reads from it without a network. Which files belong to
a split follows the layout of the hub's `datasets` library: `configs` in the README's YAML header, else the split's name in
folder or file names, else all files are `train`. Nothing of a repository is executed.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from afina.core.errors import AfinaError, Problem
from afina.core.hub import PREFIX, asking
from afina.core.messages import N_, Message, say
from afina.core.paths import Home, confined
from afina.data.folders import data_files

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The split, and the words in names that stand for it."""
PATTERNS = [
    "README.md",
    *(
        f"*.{end}{more}"
        for end in ["json", "jsonl", "ndjson", "csv", "tsv", "parquet", "arrow", "txt"]
        for more in ("", ".gz", ".zst")
    ),
]

_NAME = re.compile(r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?::(?P<split>[\w.-]{1,60}))?")
_HEADER = re.compile(r"---\s*\n(.*?\n)---\s*(?:\n|$)", re.DOTALL)


def bring(home: Home, name: str) -> Path:
    """The folder in the datasets folder with the files of `name`; downloaded when it is not there yet.

    Raises AfinaError `bad_name`, `no_network`, `not_found`, `no_split`.
    """
    repo, split = _parts(name)
    target = confined(home.datasets, "--".join([*repo.split("/"), *([split] if split else [])]))
    if target.is_dir():
        return target
    files = split_files(download(repo), split)
    draft = target.with_name(f"~{target.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for path, place in files:
        copy = draft / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    draft.rename(target)
    return target


def _parts(name: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None or ".." in name:
        message = say(N_("“{name}” is not the name of a dataset of the hub."), name=name[:200])
        remedy = say(N_("Write hub:owner/name or hub:owner/name:split."))
        raise AfinaError(Problem("bad_name", message, remedy, "dataset", name[:200]))
    return match["repo"], match["split"]


def download(repo: str) -> Path:
    """The snapshot of a dataset repository in the cache of huggingface_hub, downloaded where it is not complete."""
    from huggingface_hub import snapshot_download

    absent = say(N_("The hub has no dataset “{name}” that can be read without an account."), name=repo)
    away = say(N_("The dataset “{name}” is not on this machine, and the hub cannot be reached."), name=repo)
    remedy = say(N_("Try again when there is a network, or copy the files into the datasets folder."))
    with asking(
        Problem("not_found", absent, _look(), "dataset", repo), Problem("no_network", away, remedy, "dataset", repo)
    ):
        return Path(snapshot_download(repo, repo_type="dataset", allow_patterns=PATTERNS))


def _look() -> Message:
    return say(N_("Look at the name on the hub's page; private datasets need a login with “hf auth login”."))


def split_files(repository: Path, split: str | None) -> list[tuple[Path, Path]]:
    """(file, its place in the repository) of one split; of `train`, or the only one, when none is asked for.

    Raises AfinaError `no_split` with the splits that there are.
    """
    splits = find_splits(repository)
    wanted = split or ("train" if "train" in splits else next(iter(splits), "train"))
    if wanted not in splits:
        message = say(
            N_("The dataset has no part “{split}”. It has: {splits}."), split=wanted, splits=", ".join(splits) or "–"
        )
        remedy = say(N_("Name one of them after a colon, as in hub:owner/name:train."))
        raise AfinaError(Problem("no_split", message, remedy, "dataset", wanted), "not_found")
    return [(path, path.relative_to(repository)) for path in splits[wanted]]


def find_splits(repository: Path) -> dict[str, list[Path]]:
    """The files of each split of a repository, by the rules of the `datasets` library."""
    files = _files(repository)
    if (declared := _declared(repository)) is not None:
        found = {
            split: [path for path in files if _matches(path.relative_to(repository), globs)]
            for split, globs in declared.items()
        }
        return {split: paths for split, paths in found.items() if paths}
    found = {}
    for path in files:
        if split := _named(path.relative_to(repository)):
            found.setdefault(split, []).append(path)
    return found or ({"train": files} if files else {})


def _files(repository: Path) -> list[Path]:
    """Data files; in the cache each is a link to a blob beside the snapshot, so links are followed here."""
    if "snapshots" not in repository.parts:
        return data_files(repository)
    return sorted(
        path
        for path in repository.rglob("*")
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in PATTERNS[1:])
    )


def _declared(repository: Path) -> dict[str, list[str]] | None:
    """The globs of each split of the first (or default) configuration in the README's header."""
    try:
        header = _HEADER.match((repository / "README.md").read_text(encoding="utf-8", errors="replace"))
        configs = yaml.safe_load(header[1]).get("configs") if header else None
    except (OSError, yaml.YAMLError, AttributeError):
        return None
    usable = [config for config in configs or [] if isinstance(config, Mapping) and config.get("data_files")]
    if not usable:
        return None
    chosen = next((c for c in usable if c.get("default") or c.get("config_name") == "default"), usable[0])
    return _globs(chosen["data_files"])


def _globs(files: Any) -> dict[str, list[str]] | None:
    """`data_files` in any of its forms: a glob, a list of globs, a mapping, or a list of {split, path}."""
    if isinstance(files, str):
        return {"train": [files]}
    if isinstance(files, Mapping):
        return {str(split): _list(globs) for split, globs in files.items()}
    if not isinstance(files, list):
        return None
    if all(isinstance(item, str) for item in files):
        return {"train": files}
    return {
        str(item["split"]): _list(item["path"])
        for item in files
        if isinstance(item, Mapping) and {"split", "path"} <= item.keys()
    }


def _list(globs: Any) -> list[str]:
    return [str(glob) for glob in globs] if isinstance(globs, list) else [str(globs)]


def _matches(place: Path, globs: list[str]) -> bool:
    return any(fnmatch.fnmatch(place.as_posix(), glob.removeprefix("./").replace("**/", "*")) for glob in globs)


def _named(place: Path) -> str | None:
    """The split that a folder or file name speaks of: `data/train-00000-of-00002.parquet`, `test/part.csv`."""
    for part in place.parts:
        words = re.split(r"[^a-z]+", part.lower())
        for split, names in SPLITS.items():
            if any(name in words for name in names):
                return split
    return None
