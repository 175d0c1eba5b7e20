"""Half the memory for a run that the system ended for lack of it: said once in its folder, read by its worker.

`memory.json` holds the limit in bytes and which process was ended, so that a look cut short can be made again.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from afina.core.files import read_json, write_json
from afina.runs.launch import process_of

NAME = "memory.json"


def memory_limit(run_folder: Path) -> int | None:
    """The bytes a run may plan with, None when nothing ever limited it."""
    try:
        return int(read_json(run_folder / NAME)["limit"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def may_be_relieved(run_folder: Path) -> bool:
    """Whether the run has not been given half the memory after an earlier process was ended."""
    try:
        return bool(read_json(run_folder / NAME)["after"] == process_of(run_folder))
    except (OSError, ValueError, KeyError, TypeError):
        return True


def relieve(run_folder: Path, held: int | None) -> None:
    """Let the next process of the run plan with half of `held`, the bytes it took, or of all there are."""
    most = held or psutil.virtual_memory().total
    write_json(run_folder / NAME, {"limit": most // 2, "after": process_of(run_folder)})
