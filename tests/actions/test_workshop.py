"""The workshop: remedies, rows by hand, the history, the way back. The person's file is never touched."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from afina import actions
from afina.actions import Asked, Fix
from afina.core.errors import AfinaError
from afina.core.paths import Home
from afina.data import versions
from tests.runs import helpers

Rows = list[Any]


def said(*turns: str, roles: tuple[str, ...] = ("user", "assistant")) -> dict[str, Any]:
    """A conversation; the roles take turns."""
    return {"messages": [{"role": roles[n % len(roles)], "content": text} for n, text in enumerate(turns)]}


def put(home: Home, rows: Rows, name: str = "mess.jsonl") -> Path:
    path = home.datasets / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def codes(home: Home, name: str = "mess.jsonl") -> set[str]:
    report = actions.dataset(home, name)[1]
    return {group.code for group in [*report.errors, *report.warnings]} - {"few_rows"}


def fix(home: Home, code: str, way: str | None = None, **more: Any) -> Any:
    return actions.fix_dataset(home, "mess.jsonl", Fix(code, way, **more))


def read_back(home: Home, name: str = "mess.jsonl") -> Rows:
    return [json.loads(line) for line in actions.export_dataset(home, name)]


GOOD = [said(f"Question {n}?", f"Answer {n}.") for n in range(6)]

LONG = "In the mountains of Ermera people plant coffee under tall trees and pick the red berries by hand every year"

CASES: list[tuple[str, str, Rows, Rows | None]] = [
    ("duplicate", "drop", [GOOD[0], GOOD[1], GOOD[0], GOOD[0]], GOOD[:2]),
    ("empty_answer", "drop", [GOOD[0], said("a", " ")], GOOD[:1]),
    ("no_answer", "drop", [said("a"), GOOD[0]], GOOD[:1]),
    ("empty_prompt", "drop", [GOOD[0], said("", "x")], GOOD[:1]),
    ("wrong_type", "drop", [GOOD[0], {"messages": 3}], GOOD[:1]),
    ("missing_field", "drop", [GOOD[0], {"messages": [{"role": "user"}]}], GOOD[:1]),
    ("bad_json", "leave_out", [GOOD[0], "{broken", GOOD[1]], GOOD[:2]),
    ("not_utf8", "leave_out", [GOOD[0], '{"messages": "\\ud800"}', said("\ud800", "b")], None),
    (
        "unknown_role",
        "map",
        [GOOD[0], said("a", "b", roles=("customer", "bot")), said("c", "d", roles=("x", "y"))],
        [GOOD[0], said("a", "b"), said("c", "d")],
    ),
    ("unknown_role", "drop", [GOOD[0], said("a", "b", roles=("user", "bot"))], GOOD[:1]),
    (
        "bad_turn_order",
        "join",
        [
            GOOD[0],
            said("a", "b", "c", roles=("user", "user", "assistant")),
            said("q", "r", "s"),
            said("lone", roles=("assistant",)),
        ],
        [GOOD[0], said("a\n\nb", "c"), said("q", "r"), said("lone", roles=("assistant",))],
    ),
    ("near_duplicate", "drop", [said("Tell me.", LONG), GOOD[0], said("Tell me.", LONG + ".")], None),
    ("secret", "drop", [GOOD[0], said("My key?", "It is ghp_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY1zA2")], GOOD[:1]),
    (
        "secret",
        "mask",
        [GOOD[0], said("My key?", "It is ghp_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY1zA2" + ", keep it.")],
        [GOOD[0], said("My key?", "It is [SECRET], keep it.")],
    ),
    (
        "personal_data",
        "mask",
        [GOOD[0], said("Is it maria.soares@gmail.com?", "Yes, or +670 7723 4581.")],
        [GOOD[0], said("Is it [EMAIL]?", "Yes, or [PHONE].")],
    ),
    ("personal_data", "drop", [GOOD[0], said("Who helps?", "Write to maria.soares@gmail.com, she answers.")], GOOD[:1]),
    (
        "mixed_formats",
        "convert",
        [*GOOD[:2], {"instruction": "a", "output": "b"}],
        [*GOOD[:2], said("a", "b")],
    ),
    ("mixed_formats", "drop", [*GOOD[:2], {"instruction": "a", "output": "b"}], GOOD[:2]),
]


@pytest.mark.parametrize(
    ("code", "way", "rows", "left"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_remedy_cures_what_it_names(home: Home, code: str, way: str, rows: Rows, left: Rows | None) -> None:
    file = put(home, rows)
    before = file.read_bytes()
    assert code in codes(home)
    step = fix(home, code, way)
    assert code not in codes(home) or (code, way) == ("bad_turn_order", "join")
    assert step.removed + step.changed + step.left_out > 0
    assert step.rows == len(rows) - step.removed
    assert file.read_bytes() == before
    if left is not None:
        assert read_back(home) == left


def test_the_recommended_way_comes_first_and_others_have_to_be_known(home: Home) -> None:
    put(home, [*GOOD, GOOD[0]])
    assert fix(home, "duplicate").way == "drop"
    for code, way, expected in (
        ("duplicate", None, "nothing_to_fix"),
        ("duplicate", "melt", "no_remedy"),
        ("few_rows", None, "no_remedy"),
    ):
        with pytest.raises(AfinaError) as caught:
            fix(home, code, way)
        assert caught.value.code == expected
    put(home, [said("a", "")])
    actions.start_again(home, "mess.jsonl")
    with pytest.raises(AfinaError) as caught:
        fix(home, "empty_answer")
    assert caught.value.code == "nothing_left"


def test_a_folder_is_worked_on_as_one_dataset(home: Home) -> None:
    folder = home.datasets / "parts"
    folder.mkdir()
    for name, rows in (("a.jsonl", [*GOOD[:2], "{broken"]), ("b.jsonl", [GOOD[2], GOOD[0]])):
        put(home, rows).replace(folder / name)
    for code in ("bad_json", "duplicate"):
        actions.fix_dataset(home, "parts", Fix(code))
    assert read_back(home, "parts") == GOOD[:3]
    assert codes(home, "parts") == set()
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_equal_answers_are_thinned_out(home: Home) -> None:
    put(home, [said(f"Question {n}?", "I do not know.") for n in range(60)] + GOOD)
    assert "constant_answer" in codes(home)
    step = fix(home, "constant_answer")
    assert (step.way, step.rows, step.removed) == ("thin", 16, 50)
    assert "constant_answer" not in codes(home)


def test_rows_too_long_are_shortened_at_the_end_of_a_word(home: Home) -> None:
    helpers.furnish(home)
    long = said("Tell me everything.", " ".join(f"word{n}" for n in range(300)))
    many = said(*["A question?" if n % 2 == 0 else "An answer of some words." for n in range(40)])
    put(home, [GOOD[0], long, many])
    step = actions.fix_dataset(home, "mess.jsonl", Fix("too_long", max_length=64))
    assert (step.changed, step.removed) == (2, 0)
    first, cut, fewer = read_back(home)
    assert first == GOOD[0]
    assert long["messages"][1]["content"].startswith(cut["messages"][1]["content"] + " ")
    assert 2 <= len(fewer["messages"]) < 40
    shown = actions.dataset_tokens(home, "mess.jsonl", "small", max_length=64)
    assert [row["cut"] for row in shown["rows"]] == [0, 0, 0]


def test_rows_that_leak_go_from_training(home: Home) -> None:
    put(home, GOOD)
    put(home, GOOD[:2], "held.jsonl")
    with pytest.raises(AfinaError, match="validation"):
        fix(home, "leak")
    assert fix(home, "leak", validation="held.jsonl").removed == 2
    assert read_back(home) == GOOD[2:]


def test_the_history_tells_each_step_and_leads_back(home: Home) -> None:
    put(home, [*GOOD, GOOD[0], said("a", ""), "{broken"])
    fix(home, "bad_json")
    fix(home, "duplicate")
    fix(home, "empty_answer")
    history = actions.dataset_history(home, "mess.jsonl")
    assert [step.message for step in history.steps] == [
        "Read from the file",
        "Broken JSON: left out",
        "Repeated rows: rows removed",
        "Empty answers: rows removed",
    ]
    assert [step.rows for step in history.steps] == [9, 8, 7, 6]
    assert (history.current, history.changed) == (3, False)
    assert codes(home) == set()
    assert actions.list_datasets(home)[0].edited
    back = actions.go_back(home, "mess.jsonl", 1)
    assert back.current == 1
    assert codes(home) == {"duplicate", "empty_answer"}
    assert fix(home, "empty_answer").parent == 1
    assert len(actions.dataset_history(home, "mess.jsonl").steps) == 5
    with pytest.raises(AfinaError) as caught:
        actions.go_back(home, "mess.jsonl", 9)
    assert caught.value.code == "step_not_found"


def test_a_diff_shows_rows_before_and_after(home: Home) -> None:
    put(home, [*GOOD, GOOD[0], said("a", "b", "c", roles=("user", "user", "assistant"))])
    fix(home, "duplicate")
    fix(home, "bad_turn_order")
    last = actions.dataset_diff(home, "mess.jsonl")
    assert (last["before"], last["after"], last["changed"], last["total"]) == (1, 2, 1, 1)
    [change] = last["changes"]
    assert [turn["content"] for turn in change["before"]["turns"]] == ["a", "b", "c"]
    assert [turn["content"] for turn in change["after"]["turns"]] == ["a\n\nb", "c"]
    whole = actions.dataset_diff(home, "mess.jsonl", before=0)
    assert (whole["removed"], whole["changed"], whole["added"]) == (1, 1, 0)
    assert [(item["kind"], item["before"]["row"]) for item in whole["changes"]] == [("removed", 7), ("changed", 8)]


def test_a_row_that_only_moved_up_is_no_difference(home: Home) -> None:
    put(home, [*GOOD, GOOD[0], "{broken", said("a", ""), {"messages": 7}])
    fix(home, "duplicate")
    found = actions.dataset_diff(home, "mess.jsonl")
    assert [(change["kind"], change["before"]["row"]) for change in found["changes"]] == [("removed", 7)]
    problems = actions.dataset(home, "mess.jsonl")[1].errors
    assert {group.code: group.rows for group in problems} == {"bad_json": [7], "empty_answer": [8], "wrong_type": [9]}
    assert next(group for group in problems if group.code == "empty_answer").excerpts == ["a /"]


def test_rows_by_hand(home: Home) -> None:
    put(home, [GOOD[0], said("a", ""), {"messages": 1}])
    step = actions.edit_row(home, "mess.jsonl", 2, said("a", "Now an answer."))
    assert (step.what, step.changed) == ("edit", 1)
    actions.edit_row(home, "mess.jsonl", 3, {"text": "A document in place of nothing."})
    actions.remove_rows(home, "mess.jsonl", [3])
    step = actions.add_rows(home, "mess.jsonl", [GOOD[4], GOOD[5]])
    assert (step.what, step.added, step.rows) == ("add", 2, 4)
    assert read_back(home) == [GOOD[0], said("a", "Now an answer."), GOOD[4], GOOD[5]]
    for call in (
        lambda: actions.edit_row(home, "mess.jsonl", 9, GOOD[0]),
        lambda: actions.remove_rows(home, "mess.jsonl", [0]),
    ):
        with pytest.raises(AfinaError) as caught:
            call()
        assert caught.value.code == "row_not_found"
    for content, expected in (
        (said("a", ""), "empty_answer"),
        ({"messages": "x"}, "wrong_type"),
        ([], "wrong_type"),
        ({"text": " "}, "empty_answer"),
    ):
        with pytest.raises(AfinaError) as caught:
            actions.add_rows(home, "mess.jsonl", [content])
        assert caught.value.code == expected
    with pytest.raises(AfinaError) as caught:
        actions.remove_rows(home, "mess.jsonl", [1], version="0" * 64)
    assert (caught.value.code, caught.value.kind) == ("version_changed", "conflict")


def test_a_file_that_changes_later_is_noted_and_can_be_read_again(home: Home) -> None:
    file = put(home, [*GOOD, GOOD[0]])
    assert not actions.dataset_history(home, "mess.jsonl").changed
    put(home, [*GOOD, GOOD[1]])
    assert [step.rows for step in actions.dataset_history(home, "mess.jsonl").steps] == [7], (
        "nothing was made of it yet"
    )
    fix(home, "duplicate")
    os.utime(file, (1, 1))
    assert not actions.dataset_history(home, "mess.jsonl").changed, "the same bytes with another time"
    put(home, GOOD[:3])
    history = actions.dataset_history(home, "mess.jsonl")
    assert (history.changed, history.current) == (True, 1)
    [info] = actions.list_datasets(home)
    assert (info.edited, info.changed, info.rows) == (True, True, 6)
    assert len(read_back(home)) == 6
    again = actions.start_again(home, "mess.jsonl")
    assert (again.changed, again.current, len(again.steps)) == (False, 2, 3)
    assert read_back(home) == GOOD[:3]


def test_a_run_learns_from_the_current_version_and_keeps_it(home: Home) -> None:
    helpers.furnish(home)
    rows = [said(f"What is {n}?", f"A number, {n}.") for n in range(20)]
    put(home, [*rows, rows[0], "{broken"])
    with pytest.raises(AfinaError):
        actions.start_run(home, {"model": "small", "dataset": "mess.jsonl"})
    fix(home, "bad_json")
    version = fix(home, "duplicate").version
    run = actions.start_run(home, {"model": "small", "dataset": "mess.jsonl"})
    manifest = json.loads((home.runs / run.id / "manifest.json").read_text())
    assert manifest["datasets"][0]["sha256"] == version
    assert manifest["datasets"][0]["name"] == "mess.jsonl"
    assert run.name == "mess-lora"
    assert actions.list_datasets(home)[0].last_used == run.id
    stored = set(home.store.glob("*.jsonl.gz"))
    assert len(stored) == 3
    actions.delete_dataset(home, "mess.jsonl")
    assert versions.tidy(home, now=2e10) == 2
    assert [path.name for path in home.store.glob("*.jsonl.gz")] == [f"{version}.jsonl.gz"]
    (home.runs / run.id / "manifest.json").write_text("{")
    assert versions.tidy(home, now=2e10) == 0, "what a run may refer to is never removed"


def test_filter_and_search_over_all_rows(home: Home) -> None:
    rows: Rows = [said(f"Question {n}?", f"Answer {n}.") for n in range(200)]
    rows[150] = said("Where is Baucau?", "")
    rows[199] = rows[3]
    put(home, rows)
    bad = actions.dataset_rows(home, "mess.jsonl", asked=Asked(problem="empty_answer"))
    assert ([row["row"] for row in bad["rows"]], bad["total"]) == ([151], 1)
    assert bad["rows"][0]["turns"][0]["content"] == "Where is Baucau?", "a row that cannot be used can be read"
    twice = actions.dataset_rows(home, "mess.jsonl", asked=Asked(problem="duplicate"))
    assert [row["row"] for row in twice["rows"]] == [200]
    found = actions.dataset_rows(home, "mess.jsonl", offset=5, limit=3, asked=Asked(search="question 1"))
    assert [row["row"] for row in found["rows"]] == [15, 16, 17]
    assert found["total"] == 109
    both = actions.dataset_rows(home, "mess.jsonl", asked=Asked(search="baucau", problem="duplicate"))
    assert (both["rows"], both["total"]) == ([], 0)
