"""Files of the families that people really bring, recognised with no hint: each made here after the real ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from afina.data.checks import check
from afina.data.examples import Example, Turn
from afina.data.readers import read
from afina.data.template import ChatTokenizer
from tests.data.test_checks import write

TOOL = {
    "name": "find_book",
    "description": "Finds a book",
    "parameters": {"type": "object", "properties": {"title": {"type": "string"}}},
}
CALL = {"name": "find_book", "arguments": {"title": "Rice"}}


def examples(path: Path) -> list[Example]:
    return [item for item in read(path) if isinstance(item, Example)]


def tool_calls(rows: int) -> list[dict[str, Any]]:
    said = [
        {"from": "human", "value": "Which book is about rice?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": json.dumps({"found": ["Rice of Timor"]})},
        {"from": "gpt", "value": "It is called Rice of Timor."},
    ]
    plain = [{"from": "human", "value": "Can you order a pizza?"}, {"from": "gpt", "value": "I cannot do that."}]
    return [
        {
            "conversations": said if n % 2 else plain,
            "tools": json.dumps([TOOL]) if n % 3 else "[]",
            "system": f"Helper {n}.",
        }
        for n in range(rows)
    ]


@pytest.mark.parametrize("name", ["demo.json", "demo", "demo.txt"])
def test_sharegpt_with_tool_calls(tmp_path: Path, name: str, tiny_model: Path) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(tool_calls(90), indent=2))
    report = check(path, tokenizer=ChatTokenizer.load(tiny_model))
    assert (report.format, report.rows, report.errors) == ("sharegpt", 90, [])
    found = examples(path)
    assert [turn.role for turn in found[1].turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert found[1].turns[2] == Turn("assistant", "", tool_calls=({"type": "function", "function": CALL},))
    assert found[1].tools == (TOOL,)
    assert found[0].tools is None
    assert report.answer_tokens


def test_a_call_that_is_no_json_is_text(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f(1)"}, {"from": "gpt", "value": "a"}]
    [example] = examples(write(tmp_path / "rows.jsonl", [{"conversations": said}]))
    assert [turn.content for turn in example.turns] == ["q", "f(1)", "a"]


@pytest.mark.parametrize("key", ["text", "value"])
def test_messages_whose_contents_are_lists(tmp_path: Path, key: str) -> None:
    def part(text: str, kind: str = "text") -> list[dict[str, Any]]:
        return [{"type": kind, key: text}]

    row = {
        "messages": [
            {"role": "system", "content": part("Be short."), "loss_weight": 0.0},
            {"role": "user", "content": [*part("Hello"), *part(" there")], "loss_weight": 0.0},
            {"role": "assistant", "content": part("Not this."), "loss_weight": 0.0},
            {"role": "user", "content": part("More")},
            {"role": "assistant", "content": part("Hi."), "loss_weight": 1.0},
        ]
    }
    path = write(tmp_path / "rows.jsonl", [row] * 60)
    report = check(path)
    assert (report.format, report.rows, report.errors) == ("messages", 60, [])
    assert [turn.content for turn in examples(path)[0].turns] == [
        "Be short.",
        "Hello there",
        "Not this.",
        "More",
        "Hi.",
    ]
    assert [turn.content for turn in examples(path)[0].answers] == ["Hi."]


def test_calls_among_the_parts_of_a_content(tmp_path: Path) -> None:
    called = {"type": "tool_call", "value": json.dumps(CALL)}
    said = [
        {"role": "user", "content": [{"type": "text", "value": "q"}]},
        {"role": "assistant", "content": [{"type": "text", "value": "Let me look."}, called]},
        {"role": "tool", "content": [{"type": "text", "value": "found"}]},
        {"role": "assistant", "content": [{"type": "text", "value": "a"}]},
    ]
    [example] = examples(write(tmp_path / "rows.jsonl", [{"messages": said}]))
    assert example.turns[1] == Turn("assistant", "Let me look.", tool_calls=({"type": "function", "function": CALL},))


def test_the_older_field_of_a_call(tmp_path: Path) -> None:
    said = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Wait.", "function_call": {"name": "f", "arguments": "{}"}},
    ]
    [example] = examples(write(tmp_path / "rows.jsonl", [{"messages": said}]))
    assert example.turns[1].content == "Wait."
    assert example.turns[1].tool_calls == ({"type": "function", "function": {"name": "f", "arguments": "{}"}},)


def test_lines_of_plain_texts(tmp_path: Path) -> None:
    texts = [f"Don't wait: {n} days remain.\nA second paragraph, with “quotes”." for n in range(300)]
    path = write(
        tmp_path / "c4.json", [{"text": text, "url": "http://x", "timestamp": "2019-04-25T12:57:54Z"} for text in texts]
    )
    report = check(path)
    assert (report.format, report.rows, report.errors) == ("text", 300, [])
    assert [example.text for example in examples(path)] == texts


def test_a_megabyte_of_text_in_very_long_lines(tmp_path: Path, tiny_model: Path) -> None:
    chance = random.Random(4)
    words = [
        "water",
        "Anarchism",
        "is",
        "a",
        "political",
        "philosophy,",
        "Question:",
        "answer:",
        "and",
        "1847.",
        "(see",
        "below)",
        "“so”",
    ]
    text = "\n".join(" ".join(chance.choices(words, k=9000)) for _ in range(20)) + "\n"
    path = tmp_path / "wiki.txt"
    path.write_text(text)
    assert path.stat().st_size > 1_000_000
    report = check(path, tokenizer=ChatTokenizer.load(tiny_model), max_length=128)
    assert (report.format, report.errors) == ("plain", [])
    assert "".join(example.text or "" for example in examples(path)).replace("\n", "") == text.replace("\n", "")
    assert report.cut_tokens == 0
    assert report.tokens is not None


GOOD, BAD = Turn("assistant", "a good answer"), Turn("assistant", "a bad answer")
ASKED = Turn("user", "What is right?")


def pair(**more: Any) -> dict[str, Any]:
    return more


@pytest.mark.parametrize(
    "row",
    [
        pair(prompt=ASKED.content, chosen=GOOD.content, rejected=BAD.content),
        pair(question=ASKED.content, chosen=GOOD.content, rejected=BAD.content),
        pair(instruction=ASKED.content, input="", chosen=GOOD.content, rejected=BAD.content),
        pair(
            conversations=[{"from": "human", "value": ASKED.content}],
            chosen={"from": "gpt", "value": GOOD.content},
            rejected={"from": "gpt", "value": BAD.content},
        ),
        pair(
            chosen_messages=[{"role": "user", "content": [{"type": "text", "value": ASKED.content}]}, GOOD.as_json()],
            rejected_messages=[ASKED.as_json(), BAD.as_json()],
        ),
        pair(
            prompt=ASKED.content,
            chosen=[ASKED.as_json(), GOOD.as_json()],
            rejected=[ASKED.as_json(), BAD.as_json()],
            messages=[ASKED.as_json(), GOOD.as_json()],
            score_chosen=8.0,
        ),
    ],
    ids=["prompt", "question", "alpaca", "sharegpt", "two lists", "with messages"],
)
def test_pairs_of_a_better_and_a_worse_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "dpo.json"
    path.write_text(json.dumps([row] * 3, indent=1))
    report = check(path)
    assert (report.format, report.rows, report.errors) == ("preference", 3, [])
    assert examples(path) == [
        Example((ASKED,), row=n, line=e.line, chosen=(GOOD,), rejected=(BAD,)) for n, e in enumerate(examples(path), 1)
    ]


def test_an_instruction_with_input_before_two_answers(tmp_path: Path) -> None:
    row = {"system": "Be kind.", "instruction": "Add", "input": "1, 2", "chosen": "3", "rejected": "4"}
    [example] = examples(write(tmp_path / "rows.jsonl", [row]))
    assert example.turns == (Turn("system", "Be kind."), Turn("user", "Add\n1, 2"))
