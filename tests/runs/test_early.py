"""A worker that waits for its run gets it, and never outlives whom it waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from afina.core.paths import Home
from afina.runs.early import Early
from afina.runs.launch import computing_lock, living, process_of
from afina.runs.log import EventLog
from tests.runs.helpers import until

pytestmark = pytest.mark.timeout(120)
LEFT = """
import sys, time
from pathlib import Path
from afina.core.paths import Home
from afina.runs.early import Early
early = Early(Home(Path(sys.argv[1])))
print(early._process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(home: Home) -> Path:
    """A run that says by itself that it is incomplete."""
    folder = home.runs / "20261127-000000-aaaa"
    folder.mkdir()
    return folder


def failed(folder: Path) -> bool:
    types = [event["type"] for event in EventLog(folder).all()]
    return types == ["phase", "failed"]


def test_it_becomes_the_worker_of_the_run_it_is_told(home: Home, folder: Path) -> None:
    with Early(home) as early:
        assert early._process is not None
        waiting = early._process.pid
        process = early.start(folder, None)
        assert process.pid == waiting
        record = process_of(folder)
        assert record is not None
        assert record["pid"] == waiting
    assert process.wait(60) == 1
    assert failed(folder)
    assert "spec.json" in (folder / "console.log").read_text()
    assert living(folder) is None


@pytest.mark.parametrize("why", ["threads", "dead", "used", "ended"])
def test_where_it_cannot_be_used_another_is_started(home: Home, folder: Path, why: str) -> None:
    early = Early(home)
    waiting = early._process
    assert waiting is not None
    if why == "dead":
        waiting.kill()
        waiting.wait()
    elif why == "used":
        other = home.runs / "20261127-000000-bbbb"
        other.mkdir()
        assert early.start(other, None) is waiting
        assert waiting.wait(60) == 1
    elif why == "ended":
        early.end()
    process = early.start(folder, 1 if why == "threads" else None)
    assert process is not waiting
    assert process.wait(60) == 1
    assert failed(folder)
    assert waiting.poll() is not None


def test_it_ends_with_the_command(home: Home) -> None:
    command = subprocess.Popen([sys.executable, "-c", LEFT, str(home.root)], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    waiting = psutil.Process(int(command.stdout.readline()))
    assert "--early" in waiting.cmdline()
    os.kill(command.pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    command.wait()
    until(lambda: not waiting.is_running() or waiting.status() == psutil.STATUS_ZOMBIE, timeout=60)


def test_none_is_started_beside_a_run_that_computes(home: Home, folder: Path) -> None:
    lock = computing_lock(home)
    assert lock.acquire()
    try:
        early = Early(home)
    finally:
        lock.release()
    assert early._process is None
    process = early.start(folder, None)
    assert process.wait(60) == 1
    assert failed(folder)
