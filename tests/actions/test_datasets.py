"""Datasets: files that appear, change and go."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from afina import actions
from afina.core.errors import AfinaError
from afina.core.paths import Home
from afina.runs.index import index
from tests.runs import helpers

ROWS = [{"instruction": f"Say {n}", "output": f"It is {n}."} for n in range(30)]


def test_a_dropped_file_appears_and_follows_its_changes(home: Home) -> None:
    assert actions.list_datasets(home) == []
    file = home.datasets / "a b.json"
    file.write_text(json.dumps(ROWS))
    [info] = actions.list_datasets(home)
    assert (info.name, info.format, info.rows, info.errors, info.tokens) == ("a b.json", "alpaca", 30, 0, None)
    file.write_text(json.dumps(ROWS[:9]))
    os.utime(file, (1, 1))
    assert actions.list_datasets(home)[0].rows == 9
    (home.datasets / ".hidden.json").write_text("[]")
    (home.datasets / "half.json.part").write_text("[]")
    (home.datasets / "folder").mkdir()
    assert [info.name for info in actions.list_datasets(home)] == ["a b.json"]
    file.unlink()
    assert actions.list_datasets(home) == []


def test_two_who_look_at_one_file_at_once_both_get_their_report(home: Home) -> None:
    (home.datasets / "sums.json").write_text(json.dumps(ROWS))
    with index(home) as session:
        place = str(session.get_bind().engine.url.database)
    late = []

    def other(_session: Session, *_: object) -> None:
        """Someone else writes the row between our look whether it is there and our writing it."""
        if not late:
            late.append(True)
            with closing(sqlite3.connect(place)) as base, base:
                base.execute("INSERT INTO datasets (name, fingerprint, report) VALUES ('sums.json', 'x', '{}')")

    event.listen(Session, "before_flush", other)
    try:
        assert actions.dataset(home, "sums.json")[0].rows == 30
    finally:
        event.remove(Session, "before_flush", other)
    assert late
    assert actions.list_datasets(home)[0].rows == 30


def test_tokens_are_counted_as_soon_as_there_is_a_model(home: Home) -> None:
    (home.datasets / "sums.json").write_text(json.dumps(ROWS))
    assert actions.list_datasets(home)[0].tokens is None
    helpers.furnish(home)
    counted = {info.name: info for info in actions.list_datasets(home)}["sums.json"]
    assert counted.tokens
    assert counted.answer_tokens
    assert counted.tokens > counted.answer_tokens


def test_a_broken_file_is_listed_as_broken_with_its_rows_readable(home: Home) -> None:
    (home.datasets / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": ""}\n')
    info, report = actions.dataset(home, "bad.jsonl")
    assert (info.status, info.errors) == ("broken", 1)
    assert [group.code for group in report.errors] == ["empty_answer"]
    shown = actions.dataset_rows(home, "bad.jsonl")
    assert shown["total"] == 2
    assert shown["rows"][0]["turns"][1] == {"role": "assistant", "content": "b"}
    assert shown["rows"][1]["problems"][0].code == "empty_answer"


def test_rows_as_tokens_join_to_the_conversation(home: Home) -> None:
    helpers.furnish(home)
    shown = actions.dataset_tokens(home, "numbers.json", "small", offset=2, limit=3)
    assert (len(shown["rows"]), shown["total"]) == (3, 12)
    row = shown["rows"][0]
    text = "".join(piece["text"] for piece in row["pieces"])
    assert "What is 2?" in text
    assert 0 < row["learned"] < row["tokens"]


def test_uploads_are_whole_numbered_and_kept_inside(home: Home) -> None:
    data = json.dumps(ROWS).encode()
    assert actions.add_dataset(home, "sums.json", io.BytesIO(data)).name == "sums.json"
    assert actions.add_dataset(home, "sums.json", io.BytesIO(data)).name == "sums.json"
    assert actions.add_dataset(home, "sums.json", io.BytesIO(data + b" ")).name == "sums-2.json"
    for name in ("../out.json", ".hidden", "a/b.json", ""):
        with pytest.raises(AfinaError) as caught:
            actions.add_dataset(home, name, io.BytesIO(data))
        assert caught.value.code == "bad_name"
    assert sorted(path.name for path in home.datasets.iterdir()) == ["sums-2.json", "sums.json"]


def test_a_deleted_dataset_is_gone_and_its_runs_stay(home: Home) -> None:
    helpers.furnish(home)
    run = helpers.start(home)
    assert actions.list_datasets(home)[0].last_used == run.id
    actions.delete_dataset(home, "numbers.json")
    assert helpers.finish(home, run).status == "succeeded"
    with pytest.raises(AfinaError) as caught:
        actions.delete_dataset(home, "numbers.json")
    assert (caught.value.code, caught.value.kind) == ("dataset_not_found", "not_found")
