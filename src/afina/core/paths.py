"""The folders of one user, and the rule that keeps every name inside them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say

STORE = "datasets.store"
"""The folder of a home that holds what datasets were, version by version."""
RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))}


@dataclass(frozen=True)
class Home:
    """The folder that holds everything of one user (`--home`, `AFINA_HOME`, default `~/afina`)."""

    root: Path

    @property
    def datasets(self) -> Path:
        """Files dropped here are datasets."""
        return self.root / "training" / "datasets"

    @property
    def runs(self) -> Path:
        """One folder a run; the folder is the truth, the database an index."""
        return self.root / "training" / "runs"

    @property
    def models(self) -> Path:
        """One folder a base model, in the Hugging Face layout."""
        return self.root / "models"

    @property
    def exports(self) -> Path:
        """What people take elsewhere."""
        return self.root / "exports"

    @property
    def store(self) -> Path:
        """Content-addressed versions of datasets, and their histories."""
        return self.root / STORE

    @property
    def database(self) -> Path:
        """The SQLite index; rebuildable from the folders."""
        return self.root / "afina.db"

    @property
    def state(self) -> Path:
        """Small files of the program itself: locks, the measured facts of this machine, the server's token."""
        return self.root / ".state"

    def create(self) -> Home:
        """Make the folders that are missing; returns itself."""
        for folder in (self.datasets, self.runs, self.models, self.exports, self.store, self.state):
            folder.mkdir(parents=True, exist_ok=True)
        return self


def find_home(given: str | Path | None = None) -> Home:
    """The home folder from the flag, else `AFINA_HOME`, else `~/afina`. Creates nothing."""
    return Home(Path(given or os.environ.get("AFINA_HOME") or Path.home() / "afina").expanduser().absolute())


def local_path(given: str) -> Path:
    """A path as a person typed it, `~` opened up; where `~name` is no user it is a name like any other."""
    return Path(os.path.expanduser(given))  # noqa: PTH111 - Path.expanduser raises RuntimeError there


def confined(folder: Path, name: str) -> Path:
    """The path of `name` directly inside `folder`; raises AfinaError `bad_name` for anything that could lead out of it.

    Refused: empty names, path separators, `.` and `..`, leading dots, control characters, names Windows reserves,
    more than 200 bytes, and symbolic links that point outside `folder`.
    """
    path = folder / name if name else folder
    bad = (
        not name
        or name != name.strip()
        or name.startswith(".")
        or name.endswith(".")
        or any(character in '/\\:*?"<>|' or ord(character) < 32 or ord(character) == 127 for character in name)
        or name.split(".")[0].lower() in RESERVED
        or len(name.encode("utf-8", "surrogatepass")) > 200
        or any(0xD800 <= ord(character) <= 0xDFFF for character in name)
    )
    if bad or not path.resolve().is_relative_to(folder.resolve()):
        raise AfinaError(
            Problem(
                "bad_name",
                say(N_("The name “{name}” cannot be used."), name=name),
                say(N_("Use letters, digits, spaces, “-”, “_” and “.”, and no folder in front.")),
                field="name",
                value=name,
            )
        )
    return path
