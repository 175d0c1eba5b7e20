"""Where downloads, conversions and measurements of this machine are kept between checkouts and homes."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from afina.core.files import read_json, write_json

MOST_REMEMBERED = 100


def cache_folder() -> Path:
    """`AFINA_CACHE`, else the user's cache folder as the system has it. Creates nothing."""
    if given := os.environ.get("AFINA_CACHE"):
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "afina" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "afina"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afina"


def recalled(kind: str, facts: list[Any]) -> Any:
    """What was remembered for the same `facts`, None where nothing was or the cache cannot be read."""
    return _known(kind).get(json.dumps(facts))


def remember(kind: str, facts: list[Any], value: Any) -> None:
    """Keep `value`, plain JSON, in `measured-<kind>.json` of the cache. One that cannot be written to keeps nothing."""
    known = [*_known(kind).items(), (json.dumps(facts), value)]
    with suppress(OSError):
        write_json(cache_folder() / f"measured-{kind}.json", dict(known[-MOST_REMEMBERED:]))


def _known(kind: str) -> dict[str, Any]:
    with suppress(OSError, ValueError, TypeError):
        known = read_json(cache_folder() / f"measured-{kind}.json")
        if isinstance(known, dict):
            return known
    return {}
