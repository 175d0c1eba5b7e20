"""Where downloads, conversions and measurements of this machine are kept between checkouts and homes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
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


def remembered(kind: str, facts: list[Any], measure: Callable[[], Any]) -> Any:
    """What `measure` gives, a plain JSON value, measured once for the same `facts`: `measured-<kind>.json` in the cache.

    A cache that cannot be read or written to costs a measurement and nothing else.
    """
    path = cache_folder() / f"measured-{kind}.json"
    key = json.dumps(facts)
    try:
        known = read_json(path)
        if key in known:
            return known[key]
    except (OSError, ValueError, TypeError):
        known = {}
    value = measure()
    if not isinstance(known, dict):
        known = {}
    with suppress(OSError):
        write_json(path, dict([*known.items(), (key, value)][-MOST_REMEMBERED:]))
    return value
