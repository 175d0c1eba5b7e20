"""The report: every problem of a file at once, grouped, with row, line, field and value."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from afina.core.messages import Message
from afina.core.paths import Home
from afina.data.cache import checked
from afina.data.checks import check
from afina.data.report import Group, unpack
from afina.data.template import ChatTokenizer
from tests.tiny import build_tokenizer

DEMO = Path(__file__).parents[3] / "shared" / "data" / "alpaca_en_demo.json"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"What is {n}?", "output": f"{n} is a number."} for n in range(count)]


def by_code(groups: list[Group]) -> dict[str, Group]:
    return {group.code: group for group in groups}


def test_every_problem_of_a_file_at_once(tmp_path: Path) -> None:
    data: list[Any] = rows(3)
    data += [
        {"instruction": "a", "input": ""},
        {"instruction": "a", "output": 42},
        {"messages": [{"role": "bot", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"instruction": "a", "output": "  "},
        {"instruction": " ", "output": "b"},
        {"instruction": "What is 1?", "output": "1 is a number."},
        ["a"],
    ]
    path = write(tmp_path / "mixed.jsonl", data)
    with path.open("ab") as file:
        file.write(b'{"instruction": "a"\n{"instruction": "\xff", "output": "b"}\n')
    report = check(path)
    assert (report.format, report.rows) == ("alpaca", 12)
    errors, warnings = by_code(report.errors), by_code(report.warnings)
    assert {code: group.rows for code, group in errors.items()} == {
        "missing_field": [4],
        "wrong_type": [5, 10],
        "mixed_formats": [6],
        "unknown_role": [6],
        "empty_answer": [7],
        "bad_json": [11],
        "not_utf8": [12],
    }
    assert {code: group.rows for code, group in warnings.items()} == {
        "empty_prompt": [8],
        "duplicate": [9],
        "few_rows": [],
    }
    said = {code: str(group.message) for code, group in (errors | warnings).items()}
    assert said["missing_field"] == "Row 4: “output” is missing; this row has instruction, input."
    assert said["wrong_type"] == "2 rows hold a value of the wrong kind; the first is row 5, field “output”."
    assert said["mixed_formats"] == "Rows 1 to 5 are instruction and output, row 6 is conversations (messages)."
    assert said["unknown_role"] == "Row 6, turn 1: the role “bot” is unknown. Known: system, user, assistant, tool."
    assert said["empty_answer"] == "Row 7: the answer is empty."
    assert said["bad_json"] == "Line 11, column 20: expected “,” or a closing bracket after a value."
    assert said["not_utf8"] == "Line 12, column 18: the byte FF is not UTF-8 text."
    assert said["duplicate"] == "Row 9 repeats row 2."
    assert said["few_rows"].startswith("12 rows: the model will memorise them.")
    details = errors["wrong_type"].as_json()["details"]
    assert [(item["row"], item["line"], item["field"], item["value"]) for item in details] == [
        (5, 5, "output", "42"),
        (10, 10, None, '["a"]'),
    ]
    assert not report.ok


def test_a_table_names_its_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('Pertanyaan;Jawaban\nApa?;"Ya; tidak"\nSiapa?\n"a" b;c\nApa?;Ya\n')
    report = check(path)
    assert (report.format, report.rows) == ("table", 4)
    errors = by_code(report.errors)
    assert str(errors["missing_field"].message) == "Row 2: “jawaban” is missing; this row has pertanyaan."
    assert (errors["bad_csv"].rows, errors["bad_csv"].lines) == ([3], [4])
    lines = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
    assert by_code(check(lines).errors)["missing_field"].details[0].field == "completion"


def test_a_group_names_the_first_rows_and_counts_all(tmp_path: Path) -> None:
    report = check(write(tmp_path / "rows.jsonl", [*rows(1), *[{"instruction": "a"}] * 300]))
    group = by_code(report.errors)["missing_field"]
    assert group.count == 300
    assert group.rows == list(range(2, 22))
    assert str(group.message) == "300 rows lack a field; the first is row 2, which has no “output”."


def test_the_order_of_turns(tmp_path: Path) -> None:
    orders = ["uua", "uaa", "au", "ua", "sua", "usa", "uau", "u", "tua"]
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    data = [{"messages": [{"role": names[turn], "content": "x"} for turn in order]} for order in orders]
    report = check(write(tmp_path / "rows.jsonl", data))
    assert by_code(report.warnings)["bad_turn_order"].rows == [1, 2, 3, 6, 7]
    assert by_code(report.errors)["no_answer"].rows == [8]
    said = [str(fault.message) for fault in by_code(report.warnings)["bad_turn_order"].details]
    assert said[0] == "Row 1: two user turns in a row; they will be joined."


def test_answers_that_carry_no_weight(tmp_path: Path) -> None:
    silent = {"role": "assistant", "content": "x", "weight": 0}
    report = check(write(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "q"}, silent]}]))
    assert "weight 0" in str(by_code(report.errors)["no_answer"].message)


def test_several_faults_of_one_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "bot", "content": "x"}, {"role": "user"}, {"content": 5, "role": "assistant"}, "x"]}
    report = check(write(tmp_path / "rows.jsonl", [row]))
    assert {code: [fault.field for fault in group.details] for code, group in by_code(report.errors).items()} == {
        "unknown_role": ["messages.1.role"],
        "missing_field": ["messages.2.content"],
        "wrong_type": ["messages.3.content", "messages.4"],
    }


def test_too_long_rows_and_counts(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = ChatTokenizer.load(tiny_model)
    data = [*rows(60), {"instruction": "Count.", "output": "one two three " * 100}]
    path = write(tmp_path / "rows.jsonl", data)
    whole = check(path, tokenizer=tokenizer)
    assert whole.warnings == []
    assert whole.tokens is not None
    assert whole.longest is not None
    assert whole.answer_tokens is not None
    assert whole.tokens > whole.answer_tokens > 60
    cut = check(path, tokenizer=tokenizer, max_length=64)
    assert (cut.tokens, cut.answer_tokens, cut.cut_tokens) == (whole.tokens, whole.answer_tokens, whole.longest - 64)
    [group] = cut.warnings
    assert (group.code, group.count, group.rows) == ("too_long", 1, [61])
    share = round(100 * (whole.longest - 64) / whole.answer_tokens, 1)
    assert f"is longer than 64 tokens; the end of its answer is cut ({share} % of" in str(group.message)


def test_documents_are_divided_and_never_cut(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("A long story about coffee and rain. " * 60)
    report = check(path, tokenizer=ChatTokenizer.load(tiny_model), max_length=32)
    assert report.cut_tokens == 0
    assert report.warnings == []


def test_leaks_between_training_and_validation(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", rows(60))
    held = tmp_path / "held.csv"
    held.write_text("question,answer\nWhat is 3?,3 is a number.\nWhat is 99?,99 is a number.\n")
    [group] = check(train, validation=held).warnings
    assert (group.code, group.rows) == ("leak", [4])


def test_answers_that_are_all_the_same(tmp_path: Path) -> None:
    data = [{"instruction": f"q{n}", "output": "Yes." if n < 95 else f"No {n}."} for n in range(100)]
    [group] = check(write(tmp_path / "rows.jsonl", data)).warnings
    assert group.code == "constant_answer"
    assert str(group.message) == "95 of 100 answers are the same: “Yes.”."


def test_the_real_dataset() -> None:
    report = check(DEMO)
    assert (report.format, report.rows, report.errors) == ("alpaca", 999, [])
    [group] = report.warnings
    assert str(group.message) == "14 rows repeat an earlier row (e.g. row 276 = row 118)."


def test_reports_survive_storing(tmp_path: Path) -> None:
    report = check(write(tmp_path / "rows.jsonl", [*rows(2), {"messages": []}, {"instruction": 1}, *rows(1)]))
    assert len(report.errors) > 2
    assert unpack(json.loads(json.dumps(report.pack()))) == report


def test_the_cache_knows_content_and_settings(home: Home, tmp_path: Path, tiny_model: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(60))
    tokenizer = ChatTokenizer.load(tiny_model)
    first = checked(home, path)
    assert checked(home, path) == first == check(path)
    with_tokens = checked(home, path, tokenizer=tokenizer, tokenizer_key="tiny", max_length=16)
    assert with_tokens == checked(home, path, tokenizer=tokenizer, tokenizer_key="tiny", max_length=16)
    assert with_tokens == check(path, tokenizer=tokenizer, max_length=16)
    assert len(list((home.state / "reports").glob("*.json"))) == 2
    write(path, rows(70))
    os.utime(path, ns=(1, 1))
    assert checked(home, path).rows == 70
    for report in (home.state / "reports").glob("*.json"):
        report.write_text("{")  # a damaged cache is only a slow one
    assert checked(home, path).rows == 70


@pytest.mark.parametrize("name", ["timor-leste.txt", "tetun.jsonl"])
def test_the_samples_have_no_problem(name: str) -> None:
    report = check(Path(__file__).parents[2] / "examples" / name)
    assert report.errors == []
    assert report.warnings == []
    assert report.rows >= 50


def test_sentences_about_several_rows_name_no_none_and_can_be_translated(tmp_path: Path) -> None:
    [group] = check(write(tmp_path / "numbers.jsonl", [*rows(60), 3, "x"])).errors
    assert str(group.message) == "2 rows hold a value of the wrong kind; the first is row 61, field “–”."
    mixed = [*rows(59), {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    [group] = check(write(tmp_path / "mixed.jsonl", mixed)).errors
    assert str(group.message) == "Rows 1 to 59 are instruction and output, row 60 is conversations (messages)."
    assert all(isinstance(group.message.values[name], Message) for name in ("form", "other"))


def test_equal_last_answers_are_constant_and_equal_openings_are_not(tmp_path: Path) -> None:
    history = [["Hello", "Good day."]]
    varied = [{**row, "history": history} for row in rows(60)]
    assert check(write(tmp_path / "varied.jsonl", varied)).warnings == []
    same = [{**row, "history": [["Say it", f"It is {n}."]], "output": "No."} for n, row in enumerate(rows(60))]
    [group] = check(write(tmp_path / "same.jsonl", same)).warnings
    assert (group.code, group.count) == ("constant_answer", 60)


def test_conversations_that_the_template_refuses(tmp_path: Path) -> None:
    build_tokenizer(
        tmp_path / "model",
        "{% if messages|length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}",
    )
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    data = [{"messages": said}, {"messages": said * 2}, {"messages": said}, {"messages": said * 3}]
    report = check(write(tmp_path / "rows.jsonl", data), tokenizer=ChatTokenizer.load(tmp_path / "model"))
    group = by_code(report.errors)["template_mismatch"]
    assert (group.count, group.rows) == (2, [2, 4])
    assert "one question only" in str(group.details[0].message)
    assert not report.estimated
    assert report.tokens
