"""Looks that say how far they are, that others wait for, and that end when nobody waits any more."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path

import psutil
import pytest

from afina.core.errors import AfinaError
from afina.core.paths import Home
from afina.data import cache, checks, parallel, watch
from afina.data.checks import check
from afina.data.report import Report
from afina.data.versions import history


def fill(path: Path, rows: int = 3000) -> Path:
    text = "".join(json.dumps({"instruction": f"Question {n}?", "output": f"Answer {n}."}) + "\n" for n in range(rows))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_look_says_how_far_it_is(tmp_path: Path, name: str) -> None:
    path = fill(tmp_path / name)
    size = path.stat().st_size
    seen: list[tuple[int, int]] = []
    assert watch.how_far(path) is None
    with watch.looking(path, size), watch.telling(lambda *at: seen.append(at)):
        assert watch.how_far(path) == (0, size)
        check(path, workers=1)
        assert watch.how_far(path) == (size, size)
    assert watch.how_far(path) is None
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_a_second_look_at_the_same_waits_for_the_first(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fill(tmp_path / "rows.jsonl", 60)
    looks, go = [], threading.Event()

    def slowly(path: Path, **more: object) -> Report:
        looks.append(path)
        go.wait(5)
        return Report("alpaca", 60)

    monkeypatch.setattr(checks, "check", slowly)
    found: list[Report] = []
    threads = [threading.Thread(target=lambda: found.append(cache.checked(home, path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert looks == [path]
    assert [report.rows for report in found] == [60] * 3


def test_a_look_that_nobody_waits_for_ends_and_so_do_its_processes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "LARGE", 1000)
    monkeypatch.setattr(parallel, "BLOCK", 20_000)
    path = fill(home.datasets / "rows.jsonl", 60_000)  # more than is read in one go
    stop = threading.Event()

    def end(done: int, total: int) -> None:
        stop.set()

    before = set(psutil.Process().children())
    with watch.until(stop), watch.looking(path, 2**30), watch.telling(end), pytest.raises(AfinaError) as ended:
        check(path, workers=2)
    assert ended.value.code == "stopped"
    assert set(psutil.Process().children()) <= before
    with watch.until(stop), pytest.raises(AfinaError):
        history(home, path)
    assert history(home, path).step.rows == 60_000
