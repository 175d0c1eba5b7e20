"""Rows kept in the store: any few of them quickly, whether or not they can be used, found by what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afina.core.paths import Home
from afina.data import blocks, store
from afina.data.checks import check
from afina.data.diff import Change, diff
from afina.data.entries import joined
from afina.data.examples import Example
from afina.data.faults import Fault
from afina.data.offers import WAYS
from afina.data.readers import read
from afina.data.remedies import Remedy
from afina.data.search import rows_with
from tests.data.corpus import BROKEN


def said(question: str, answer: str, role: str = "assistant") -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": role, "content": answer}]}


def kept(home: Home, rows: list[object], name: str = "rows.jsonl") -> Path:
    """A version with these rows; texts stand in the file as they are."""
    path = home.datasets / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return store.version_path(home, store.keep(home, read(path).entries())[0])


def test_a_version_with_errors_tells_the_same_as_its_file(home: Home) -> None:
    rows = [said(f"Question {n}?", f"Answer {n}") for n in range(5)]
    messy = [
        rows[0],
        said("a", ""),
        "{not json",
        said("b", "c", "bot"),
        {"messages": 3},
        {"instruction": "x"},
        rows[0],
        rows[4],
    ]
    path = kept(home, messy)
    file, version = check(home.datasets / "rows.jsonl"), check(path)
    shown = [(group.code, group.count, group.rows, str(group.message)) for group in file.errors + file.warnings]
    assert shown == [(g.code, g.count, g.rows, str(g.message)) for g in version.errors + version.warnings]
    assert {code for code, *_ in shown} >= {"empty_answer", "bad_json", "unknown_role", "wrong_type", "duplicate"}
    assert version.rows == file.rows == 8
    again, count = store.keep(home, read(path).entries())
    assert (again, count) == (blocks.sha_of(path), 8)


def test_a_file_without_errors_is_the_version_a_run_gets(home: Home, pairs_file: Path) -> None:
    assert store.keep(home, read(pairs_file).entries())[0] == store.freeze(home, pairs_file).sha256


def test_any_rows_are_read_without_the_others(home: Home) -> None:
    path = kept(home, [said(f"Question {n}?", f"Answer {n}") for n in range(1, 501)])
    sha256 = blocks.sha_of(path)
    assert sha256
    rows = store.entries_at(home, sha256, [1, 64, 65, 400, 500, 501])
    assert [entry.row for entry in rows] == [1, 64, 65, 400, 500]
    assert [entry.example.turns[1].content for entry in rows if entry.example][3] == "Answer 400"
    index = blocks.index_of(path)
    assert (index.rows, len(index.offsets)) == (500, 8)
    for lost in (home.state / "rows").iterdir():
        lost.unlink()
    blocks._known.cache_clear()
    assert blocks.index_of(path) == index
    assert store.count(home, sha256) == 500


def test_a_comma_that_is_missing_costs_no_row(home: Home) -> None:
    file = home.datasets / "list.json"
    file.write_text('[{"instruction": "a", "output": "b"} {"instruction": "c", "output": "d"}]')
    sha256, rows = store.keep(home, read(file).entries())
    assert rows == 2
    second = store.entries_at(home, sha256, [2])[0]
    assert second.example is not None
    assert [fault.code for fault in second.faults] == ["bad_json"]
    assert not second.usable


def test_rows_that_json_cannot_write_are_kept_as_people_see_them(home: Home) -> None:
    path = kept(
        home,
        [
            '{"messages": [{"role": "user", "content": "half \\ud800"}, {"role": "assistant", "content": "x"}]}',
            '{"a": 1e999}',
            '{"messages": ' + "9" * 400 + "}",
        ],
    )
    items = list(read(path))
    assert not any(isinstance(item, Example) for item in items)
    assert [item.row for item in items if isinstance(item, Fault)] == [1, 2, 3]


def test_search_finds_what_is_said_and_not_how_it_is_written(home: Home) -> None:
    path = kept(
        home,
        [said("Where is Díli?", 'By the "sea".'), said("And the user?", "Here."), said("x", "DÍLI!"), "{broken díli"],
    )
    assert rows_with(path, "díli") == [1, 3]
    assert rows_with(path, 'the "sea"') == [1]
    assert rows_with(path, "user") == [2]
    assert rows_with(path, "messages") == []


def test_a_diff_names_rows_by_both_numbers(home: Home) -> None:
    rows = [said(f"Question {n}?", f"Answer {n}") for n in range(8)]
    before = kept(home, rows, "a.jsonl")
    changed = [*rows[:2], *rows[3:5], said("Question 5?", "Better"), *rows[6:], said("new", "row")]
    after = kept(home, changed, "b.jsonl")
    expected = [Change("removed", 3, None), Change("changed", 6, 5), Change("added", None, 8)]
    assert diff(before, after) == expected
    assert diff(before, after) == expected, "from memory"
    assert diff(after, before)[0] == Change("added", None, 3)
    assert diff(before, before) == []
    twice = kept(home, [rows[0], rows[1], rows[0], rows[0]], "c.jsonl")
    once = kept(home, [rows[0], rows[1]], "d.jsonl")
    assert diff(twice, once) == [Change("removed", 3, None), Change("removed", 4, None)]


@pytest.mark.parametrize(("name", "content"), [case[:2] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_version_of_any_broken_file_has_its_rows_and_findings(home: Home, name: str, content: bytes) -> None:
    """What a report on the file says of a row is true of the row of that number in the version."""
    file = home.datasets / name
    file.write_bytes(content)
    path = store.version_path(home, store.keep(home, read(file).entries())[0])
    one, other = check(file), check(path)
    left = {group.code: (group.count, group.rows) for group in one.errors + one.warnings}
    right = {group.code: (group.count, group.rows) for group in other.errors + other.warnings}
    numbers = [entry.row for entry in joined(read(file).entries()) if entry.row is not None]
    assert len(numbers) == other.rows == blocks.index_of(path).rows
    if numbers == list(range(1, len(numbers) + 1)):
        assert left == right
        assert one.rows == other.rows
    else:  # a reader that lost its way may pass over a number; what it names first is still the same
        assert name == "colons.json"
        assert {code: rows for code, (_, rows) in left.items()} == {code: rows for code, (_, rows) in right.items()}
    again = store.keep(home, read(path).entries())[0]
    assert again == blocks.sha_of(path)
    for code in right:
        for way in WAYS.get(code, ()):
            sha256, _ = store.rewrite(home, again, Remedy(code, way, frozenset(other.marks.get(code, ()))).apply)
            cured = check(store.version_path(home, sha256))
            kept = next((group.count for group in cured.errors + cured.warnings if group.code == code), 0)
            assert kept < right[code][0] or way in ("join", "shorten", "thin"), (code, way)
