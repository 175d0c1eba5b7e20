"""A worker that is a real process and keeps every promise of one, but computes nothing.

What it does stands in the notes of the spec: `steps`, `sleep` (seconds a step), `die` (kill, segv, exit, error, memory at
step `at`; memory: killed, as the kernel does it and counts it; `always`: in every process, not in the first alone), `deaf` (neither stop requests nor SIGTERM are heard), `slow` (seconds before it claims).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from afina.core import events
from afina.core.errors import AfinaError
from afina.core.files import read_json, write_json
from afina.runs.launch import BUSY, claim, home_of
from afina.runs.log import EventLog


def main(folder: Path) -> int:
    asked = json.loads(read_json(folder / "spec.json")["notes"] or "{}")
    time.sleep(asked.get("slow", 0))
    try:
        with claim(folder):
            note(folder, "begin")
            code = work(folder, asked)
            note(folder, "end")
            return code
    except AfinaError:
        return BUSY


def note(folder: Path, what: str) -> None:
    """Begin and end of computing, for the test that no two do it at once."""
    with (home_of(folder).state / "journal").open("a") as file:
        file.write(f"{what} {folder.name}\n")


def work(folder: Path, asked: dict[str, object]) -> int:
    log = EventLog(folder)
    total, sleep = int(asked.get("steps", 5)), float(asked.get("sleep", 0.01))
    if asked.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.write("hello from the worker\n")
    sys.stdout.flush()
    log.append(events.Phase("starting"))
    done = sorted(path.parent.name for path in (folder / "checkpoints").glob("step-*/manifest.json"))
    first = int(done[-1].split("-")[1]) if done else 0
    log.append(events.Preflight(10, 2, 100, 50, 0, total, total, 10, 100, "float32", "cpu"))
    for step in range(first + 1, total + 1):
        time.sleep(sleep)
        log.append(events.Step(step, total, step / total, 2.0 / step, 1e-3, 1.0, 100, 500.0, 10**6, 1.0))
        write_json(folder / "checkpoints" / f"step-{step:06d}" / "manifest.json", {"step": step})
        if step >= int(asked.get("at", total + 1)) and (asked.get("always") or not first):
            die(str(asked["die"]), folder)
        if (folder / "stop.json").exists() and not asked.get("deaf"):
            log.append(events.Stopped(step, read_json(folder / "stop.json")["keep"], output(folder), 2.0 / step, 1.0))
            return 0
    log.append(events.Eval(total, 1.0, 2.7, True, 10, 0.1))
    log.append(events.Finished(total, 2.0 / total, 1.0, output(folder), 1.0, total))
    return 0


def output(folder: Path) -> str:
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return "adapter"


def die(how: str, folder: Path) -> None:
    if how == "memory":
        record = read_json(folder / "process.json")
        write_json(folder / "process.json", {**record, "kills": (record["kills"] or 0) - 1})
        how = "kill"
    if how == "exit":
        raise SystemExit(3)
    if how == "error":
        raise ValueError("the sky fell")
    if how == "full":
        raise OSError(28, "No space left on device")
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSEGV)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
