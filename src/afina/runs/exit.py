"""How a worker died, told in a sentence with the next step: from exit code, signal, console and the kernel's counts."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil

from afina.core.events import Failed
from afina.core.messages import N_, Message, say
from afina.runs.launch import memory_kills, process_of
from afina.runs.log import read_console
from afina.runs.view import can_resume

TAIL = 16 * 1024
CRASHES = {"SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT"}
MARKS: list[tuple[str, tuple[str, ...]]] = [
    ("out_of_memory", ("MemoryError", "out of memory", "can't allocate memory", "Cannot allocate memory")),
    ("no_disk_space", ("No space left on device", "Disk quota exceeded", "[Errno 28]", "[WinError 112]")),
    ("no_permission", ("PermissionError", "Permission denied", "Read-only file system")),
    ("broken_installation", ("ModuleNotFoundError", "ImportError", "DLL load failed")),
]


def explain(folder: Path, exit_code: int | None, step: int | None) -> Failed:
    """Why the worker of the run in `folder` ended without a last word.

    exit_code: as `subprocess` gives it (negative: the signal), None when nobody could read it because the run was
    adopted from a server that is gone; step: the last optimizer step that was done.
    """
    console, _ = read_console(folder, -TAIL)
    memory = "out_of_memory" if killed_for_memory(folder, exit_code) else None
    code = memory or _from_console(console) or _from_exit(exit_code) or _from_boot(folder)
    message, remedy = _WORDS[code]
    values = {"step": step or 0, "signal": _signal_name(exit_code) or "", "reason": _reason(console, exit_code)}
    told = Message(message, {name: values[name] for name in re.findall(r"{(\w+)}", message)})
    return Failed(code, told, _remedy(remedy, can_resume(folder)), step)


_WORDS: dict[str, tuple[str, str | None]] = {
    "out_of_memory": (
        N_("The machine ran out of memory at step {step}, and the training process was ended."),
        N_("Close other programs, or choose a smaller batch size, a smaller maximum length or LoRA."),
    ),
    "no_disk_space": (
        N_("The disk is full; the run stopped at step {step}."),
        N_("Free some space, for example by deleting old runs."),
    ),
    "no_permission": (
        N_("The run could not write into its folder: {reason}."),
        N_("Look at the owner and the permissions of the home folder."),
    ),
    "broken_installation": (
        N_("A part of the program is missing: {reason}."),
        N_("Run “python3 run.py setup” again."),
    ),
    "killed": (N_("Someone or something ended the training process at step {step} ({signal})."), None),
    "crashed": (
        N_("The training process crashed at step {step}: {reason}."),
        N_("The console output shows the details."),
    ),
    "restarted": (N_("The machine was restarted while the run was at step {step}."), None),
    "vanished": (
        N_("The training process is gone, and nobody saw why; it had reached step {step}."),
        N_("Often the machine was short of memory, or someone ended the process."),
    ),
}


def _remedy(words: str | None, resumable: bool) -> Message:
    if words is not None:
        return Message(words)
    if resumable:
        return say(N_("Resume the run: it goes on from its last checkpoint."))
    return say(N_("Start the run again with the same settings."))


def killed_for_memory(folder: Path, exit_code: int | None) -> bool:
    """Whether the worker was killed and the kernel has counted a kill for memory since it started."""
    before, now = (process_of(folder) or {}).get("kills"), memory_kills()
    return before is not None and now is not None and now > before and exit_code in (None, -9, 137)


def _from_console(console: str) -> str | None:
    last = "\n".join(console.rstrip().splitlines()[-15:])
    return next((code for code, marks in MARKS if any(mark in last for mark in marks)), None)


def _from_exit(exit_code: int | None) -> str | None:
    if exit_code is None:
        return None
    name = _signal_name(exit_code)
    return "killed" if name and name not in CRASHES else "crashed"


def _from_boot(folder: Path) -> str:
    started = (process_of(folder) or {}).get("started")
    return "restarted" if started is not None and psutil.boot_time() > float(started) + 2 else "vanished"


def _signal_name(exit_code: int | None) -> str | None:
    """The name of the signal in an exit code: negative, or 128 more than its number as a shell gives it."""
    number = -exit_code if exit_code and exit_code < 0 else exit_code - 128 if exit_code and exit_code > 128 else None
    try:
        return signal.Signals(number).name if number else None
    except ValueError:
        return None


def _reason(console: str, exit_code: int | None) -> str:
    """The error in the last line of a traceback, else the signal or the exit code."""
    name = _signal_name(exit_code)
    if name:
        return name
    if "Traceback (most recent call last)" in console:
        return console.rstrip().splitlines()[-1].strip()[:200].rstrip(".")
    return f"exit code {'?' if exit_code is None else exit_code}"
