"""What was measured once is not measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from afina.core.cache import MOST_REMEMBERED, remembered


def test_measured_once_for_the_same_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "cache"))
    made = iter(range(10**6))

    def measure() -> list[float]:
        return [next(made), 0.1 + 0.2]

    assert remembered("speed", ["cpu", 2], measure) == [0, 0.1 + 0.2]
    assert remembered("speed", ["cpu", 2], measure) == [0, 0.1 + 0.2]
    assert remembered("speed", ["cpu", 4], measure)[0] == 1
    assert remembered("size", ["cpu", 2], measure)[0] == 2
    (tmp_path / "cache" / "measured-speed.json").write_text("{")
    assert remembered("speed", ["cpu", 2], measure)[0] == 3
    for number in range(MOST_REMEMBERED + 5):
        remembered("speed", [number], measure)
    assert remembered("speed", ["cpu", 2], measure)[0] > MOST_REMEMBERED


def test_without_a_cache_it_is_measured_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "file"))
    made = iter(range(5))
    assert [remembered("speed", [], lambda: next(made)) for _ in range(2)] == [0, 1]
