"""Starting the worker of a run as a process of its own, and the lock by which only one computes at a time in a home.

The lock is held by the worker itself, from its first moment to its last: whatever happens to servers, databases and
commands, the operating system guarantees that no second worker of the same home gets to compute.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from afina.core.compute import compute_environment
from afina.core.errors import AfinaError, Problem
from afina.core.files import read_json, write_json
from afina.core.locks import FileLock
from afina.core.messages import N_, say
from afina.core.paths import Home

BUSY = 75
"""Exit status of a worker that found another one computing (EX_TEMPFAIL)."""

WORKER = "afina.runs.worker"
EARLY = "--early"
"""What stands in place of the folder of a run that is not known yet (`early.py`)."""


def home_of(run_folder: Path) -> Home:
    """The home a run folder lies in."""
    return Home(run_folder.absolute().parent.parent.parent)


def computing_lock(home: Home) -> FileLock:
    """The lock a worker holds while it lives."""
    return FileLock(home.state / "computing.lock")


@contextmanager
def claim(run_folder: Path) -> Iterator[None]:
    """To be entered by the worker first of all, before it imports anything slow.

    Takes the computing lock, writes `process.json`, and makes this process the one the system ends first when memory is
    out. Raises AfinaError `busy` when another run computes.
    """
    lock = computing_lock(home_of(run_folder))
    if not lock.acquire(timeout=10):
        raise AfinaError(
            Problem(
                "busy",
                say(N_("Another run is computing in this home.")),
                say(N_("Wait until it has ended; this run is in the queue.")),
            ),
            kind="conflict",
        )
    try:
        record_process(run_folder, os.getpid())
        _go_first_when_memory_ends()
        yield
    finally:
        lock.release()


def _go_first_when_memory_ends() -> None:
    """Let the kernel end the run, which can be resumed, rather than the server or the desktop when memory is out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def start_worker(run_folder: Path, threads: int | None, worker: str = WORKER) -> subprocess.Popen[bytes]:
    """Start `python -m afina.runs.worker RUN_DIR` in a session of its own, its output appended to `console.log`.

    Raises OSError when the system cannot start it or the folder cannot be written to.
    """
    (run_folder / "process.json").unlink(missing_ok=True)
    with (run_folder / "console.log").open("ab") as console:
        process = spawn([worker, str(run_folder)], threads, output=console, cwd=run_folder)
    record_process(run_folder, process.pid)
    return process


def spawn(
    arguments: list[str],
    threads: int | None,
    *,
    output: IO[bytes] | int,
    stdin: int = subprocess.DEVNULL,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """`python -m` with `arguments`, in a session of its own and the environment of processes that compute. Raises OSError."""
    options: dict[str, Any] = {}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    else:
        options["start_new_session"] = True
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=compute_environment(threads),
        **options,
    )


def record_process(run_folder: Path, pid: int) -> None:
    """Write who computes this run: the number of the process and when it started, for numbers are used again."""
    try:
        created = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        created = time.time()
    write_json(run_folder / "process.json", {"pid": pid, "started": created, "kills": memory_kills()})


def memory_kills() -> int | None:
    """How often the kernel has ended a process for lack of memory so far; None where it does not say."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        with suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return None


def process_of(run_folder: Path) -> dict[str, Any] | None:
    """What `process.json` says, None when there is none (yet) or it cannot be read."""
    try:
        found = read_json(run_folder / "process.json")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else None


def living(run_folder: Path) -> psutil.Process | None:
    """The process that computes this run, None when it is gone: same number, and the same start time or command.

    The start time alone would not do where the clock was set meanwhile.
    """
    record = process_of(run_folder)
    if record is None:
        return None
    try:
        process = psutil.Process(record["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if abs(process.create_time() - float(record.get("started", 0))) < 2:
            return process
        command = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return process if WORKER in command and {str(run_folder), EARLY} & set(command) else None
