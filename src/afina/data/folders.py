"""Which files of a folder are its data, and what tells one state of a file or folder from another. Reads no row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

MOST = 10_000
"""Files of a folder that are read."""
DEEP = 4
"""Levels of folders that are looked into."""
_NAMES = (
    "readme license licence copying notice changelog citation dataset_info dataset_infos dataset_dict state manifest"
)
BESIDES = frozenset(_NAMES.split())
"""What often lies beside data, by name without ending, in lower case."""
_ENDINGS = (
    ".py .ipynb .sh .png .jpg .jpeg .gif .webp .svg .pdf .mp3 .wav .mp4 .html .css .js .lock .toml .yaml .yml "
    ".part .tmp .bak .cff .bib"
)
ENDINGS = frozenset(_ENDINGS.split())
"""What holds no rows."""


def data_files(folder: Path) -> list[Path]:
    """The files of a folder that may hold rows, by name: not hidden, no code or pictures, no read-me, no link that leads out
    of the folder."""
    return sorted(_files(folder, folder.resolve(), DEEP), key=lambda path: path.as_posix())[:MOST]


def _files(folder: Path, root: Path, levels: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries[:MOST]:
        path = folder / entry.name
        if entry.name.startswith((".", "~", "_")) or (entry.is_symlink() and not _inside(path, root)):
            continue
        if entry.is_dir() and levels and not entry.is_symlink():
            yield from _files(path, root, levels - 1)
        elif entry.is_file() and path.suffix.lower() not in ENDINGS and path.stem.lower() not in BESIDES:
            yield path


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # a loop of links, or one that leads nowhere
        return False


def size_of(path: Path) -> int:
    """Bytes of a file, or of all data files of a folder. Raises FileNotFoundError."""
    return sum(file.stat().st_size for file in data_files(path)) if path.is_dir() else path.stat().st_size


def state_of(path: Path) -> str:
    """A text that changes when the file, or any data file of the folder, does. Raises FileNotFoundError."""
    files = data_files(path) if path.is_dir() else [path]
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
    return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}" for name, stat in stats)
