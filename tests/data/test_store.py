"""Frozen versions: named by content, the same bytes each time, readable when the file is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afina.core.errors import AfinaError
from afina.core.paths import Home
from afina.data.examples import Example
from afina.data.readers import read
from afina.data.store import freeze, open_version


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "sums.csv"
    path.write_text("question,answer\n" + "".join(f"What is {n} plus {n}?,It is {2 * n}.\n" for n in range(40)))
    return path


def test_the_same_rows_are_the_same_version_in_any_format(home: Home, pairs_file: Path, table: Path) -> None:
    one, other = freeze(home, pairs_file), freeze(home, table)
    assert (one.format, other.format) == ("alpaca", "table")
    assert (one.sha256, one.rows, one.path) == (other.sha256, 40, other.path)
    assert list(home.store.iterdir()) == [one.path]


def test_a_copy_is_byte_for_byte_repeatable(home: Home, pairs_file: Path, tmp_path: Path) -> None:
    first = freeze(home, pairs_file).path.read_bytes()
    second = freeze(Home(tmp_path / "other").create(), pairs_file).path.read_bytes()
    assert first == second


def test_the_copy_outlives_the_file(home: Home, pairs_file: Path) -> None:
    before = [item.as_json() for item in read(pairs_file) if isinstance(item, Example)]
    version = freeze(home, pairs_file)
    pairs_file.unlink()
    rows = list(open_version(home, version.sha256))
    assert [row.as_json() for row in rows] == before
    assert [row.row for row in rows] == list(range(1, 41))


def test_a_file_with_errors_is_not_frozen(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"instruction": "a", "output": "b"}) + '\n{"instruction": "a"}\nx\n')
    with pytest.raises(AfinaError) as failure:
        freeze(home, path)
    assert [problem.code for problem in failure.value.problems] == ["missing_field", "bad_json"]
    assert list(home.store.iterdir()) == []
    path.write_text("[]")
    with pytest.raises(AfinaError, match="no example"):
        freeze(home, path)


def test_versions_that_are_not_there_or_damaged(home: Home, pairs_file: Path) -> None:
    for name in ("0" * 64, "../../etc/passwd", ""):
        with pytest.raises(AfinaError) as failure:
            open_version(home, name)
        assert failure.value.code == "not_found"
    version = freeze(home, pairs_file)
    content = bytearray(version.path.read_bytes())
    for damaged in (bytes(content[:-30]), bytes(content[:60]) + b"\0\0\0" + bytes(content[63:])):
        version.path.write_bytes(damaged)
        with pytest.raises(AfinaError) as failure:
            list(open_version(home, version.sha256))
        assert failure.value.code == "damaged"
    assert freeze(home, pairs_file).path == version.path
    assert len(list(open_version(home, version.sha256))) == 40
