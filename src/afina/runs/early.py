"""A worker that is started before its run is known, and imports PyTorch meanwhile, which is a second or two of every start.

A command knows only after its own imports and checks which run there will be; until then one core is idle. The worker waits for the
folder of its run on its standard input, and ends when that closes: with the command, however that ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from afina.core.paths import Home
from afina.runs.launch import EARLY, WORKER, computing_lock, record_process, spawn, start_worker


class Early:
    """The side of the command: starts a worker at once, unless another one computes in this home; `start` gives it its run."""

    def __init__(self, home: Home) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):  # then the run's own start will say what is wrong
            lock = computing_lock(home)
            if lock.acquire():
                lock.release()
                self._process = spawn([WORKER, EARLY], None, stdin=subprocess.PIPE, output=subprocess.DEVNULL)

    def __enter__(self) -> Early:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self, run_folder: Path, threads: int | None, worker: str = WORKER) -> subprocess.Popen[bytes]:
        """As `start_worker`, by the worker that waits where it can be used: started with as many threads as are asked for, and alive."""
        process, self._process = self._process, None
        if process is None or threads is not None or worker != WORKER:
            _end(process)
            return start_worker(run_folder, threads, worker)
        (run_folder / "process.json").unlink(missing_ok=True)
        record_process(run_folder, process.pid)
        if not _told(process, run_folder):
            _end(process)
            return start_worker(run_folder, threads, worker)
        return process

    def end(self) -> None:
        """It is not needed, or no longer."""
        process, self._process = self._process, None
        _end(process)


def _told(process: subprocess.Popen[bytes], run_folder: Path) -> bool:
    if process.stdin is None or process.poll() is not None:
        return False
    try:
        process.stdin.write(json.dumps(str(run_folder.absolute())).encode() + b"\n")
        process.stdin.close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait()
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()


def awaited() -> Path | None:
    """The side of the worker, when it has imported what every run needs: wait for the folder of the run, and go there; None when there is
    none."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return None
    folder = Path(json.loads(line))
    os.chdir(folder)
    console = os.open(folder / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(console, stream)
    os.close(console)
    return folder
