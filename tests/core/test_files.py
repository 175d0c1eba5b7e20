"""Atomic writes: the old content or the new, never half."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from afina.core.files import atomic, read_json, write_json


def test_a_write_replaces_the_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": "ñ"})
    assert read_json(path) == {"a": "ñ"}
    assert [item.name for item in path.parent.iterdir()] == ["x.json"]


def test_a_failure_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as file:
            file.write("half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["x.txt"]


def write_for_ever(path: str) -> None:
    number = 0
    while True:
        number += 1
        write_json(Path(path), {"number": number, "filler": "x" * 100_000})


def test_a_kill_in_the_middle_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"number": 0})
    process = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(str(path),))
    process.start()
    deadline = time.monotonic() + 30
    while read_json(path)["number"] < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert read_json(path)["number"] >= 5
