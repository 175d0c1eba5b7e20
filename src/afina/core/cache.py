"""Where downloads and conversions are kept between checkouts and homes."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """`AFINA_CACHE`, else the user's cache folder as the system has it. Creates nothing."""
    if given := os.environ.get("AFINA_CACHE"):
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "afina" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "afina"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afina"
