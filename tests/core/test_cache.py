"""What was measured once is not measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from afina.core.cache import MOST_REMEMBERED, recalled, remember


def test_what_is_remembered_is_recalled_for_the_same_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "cache"))
    assert recalled("speed", ["cpu", 2]) is None
    remember("speed", ["cpu", 2], [0, 0.1 + 0.2])
    assert recalled("speed", ["cpu", 2]) == [0, 0.1 + 0.2]
    assert recalled("speed", ["cpu", 4]) is None
    assert recalled("size", ["cpu", 2]) is None
    (tmp_path / "cache" / "measured-speed.json").write_text("{")
    assert recalled("speed", ["cpu", 2]) is None
    for number in range(MOST_REMEMBERED + 5):
        remember("speed", [number], number)
    assert [recalled("speed", [number]) for number in (4, 5)] == [None, 5]


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "file"))
    remember("speed", [], 1)
    assert recalled("speed", []) is None
