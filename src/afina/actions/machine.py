"""What this machine can do, and what stands in the way. Torch is asked in a process of its own, once."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from afina.actions.starting import versions
from afina.core.cache import cache_folder
from afina.core.compute import thread_count
from afina.core.errors import Problem
from afina.core.files import read_json, write_json
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.registry import database

LOW_DISK = 2_000_000_000
LOW_MEMORY = 2_000_000_000


def doctor(home: Home) -> dict[str, Any]:
    """Cores, memory, accelerators, disk, versions, folders, and `problems` (each a `Problem` with its remedy)."""
    home.create()
    torch = _torch(home)
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(home.root)
    facts: dict[str, Any] = {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        "threads": thread_count(),
        "vector": torch.get("vector"),
        "memory": {"total": memory.total, "available": memory.available},
        "disk": {"total": disk.total, "free": disk.free},
        "accelerators": torch.get("devices", []),
        "versions": versions(),
        "home": str(home.root),
        "cache": str(cache_folder()),
        "database": database.shown_address(home),
    }
    facts["problems"] = _problems(home, facts, torch)
    return facts


def _problems(home: Home, facts: dict[str, Any], torch: dict[str, Any]) -> list[Problem]:
    found = []
    if "error" in torch:
        found.append(
            Problem(
                "no_torch",
                say(N_("PyTorch does not start: {reason}."), reason=torch["error"]),
                say(N_("Run “python3 run.py setup” again.")),
            )
        )
    if facts["disk"]["free"] < LOW_DISK:
        found.append(
            Problem(
                "low_disk",
                say(N_("The disk is almost full.")),
                say(N_("Free some space, for example by deleting old runs.")),
            )
        )
    if facts["memory"]["available"] < LOW_MEMORY:
        found.append(
            Problem(
                "low_memory",
                say(N_("There is little free memory.")),
                say(N_("Close other programs before you start a training.")),
            )
        )
    if not os.access(home.root, os.W_OK):
        found.append(
            Problem(
                "no_permission",
                say(N_("The home folder cannot be written to.")),
                say(N_("Look at the owner and the permissions of the home folder.")),
            )
        )
    return found


def _torch(home: Home) -> dict[str, Any]:
    """What torch says of the machine, remembered until torch, the machine or its last start changes."""
    place = home.state / "machine.json"
    key = f"{versions().get('torch')} {platform.node()} {round(psutil.boot_time() / 60)} {sys.prefix}"
    try:
        known = read_json(place)
        if known["key"] == key:
            return dict(known["torch"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = _ask_torch()
    if "error" not in found:
        write_json(place, {"key": key, "torch": found})
    return found


def _ask_torch() -> dict[str, Any]:
    command = [sys.executable, "-m", "afina.engine.facts"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        reason = (done.stderr.strip().splitlines() or ["?"])[-1]
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        reason = str(error)
    return {"error": reason[:300].rstrip(".")}


def _processor() -> str:
    """The processor's name as the system has it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
