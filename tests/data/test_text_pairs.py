"""Text documents of labelled turns: where an example begins and ends, what is a label and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from afina.data.examples import Example
from afina.data.faults import Fault
from afina.data.labels import ASSISTANT, SYSTEM, USER, find_label
from afina.data.readers import read


def said(path: Path, text: str) -> list[list[tuple[str, str]]]:
    path.write_text(text, encoding="utf-8")
    source = read(path)
    assert source.format == "pairs"
    return [[(t.role, t.content) for t in item.turns] for item in source if isinstance(item, Example)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pairs.txt"


@pytest.mark.parametrize("word", [*USER.split(), "Instrução", "USUÁRIO", "Pergunta", "uzuáriu"])
def test_words_of_the_asking_side(word: str) -> None:
    for line in (f"{word}: x", f"{word.upper()} 2: x", f"**{word}:** x", f"**{word}**: x", f"### {word}: x"):
        label = find_label(line)
        assert label is not None
        assert (label.side, label.rest) == ("user", "x")


@pytest.mark.parametrize(("words", "side"), [(ASSISTANT, "assistant"), (SYSTEM, "system")])
def test_words_of_the_other_sides(words: str, side: str) -> None:
    for word in words.split():
        label = find_label(f"{word.title()}:")
        assert label is not None
        assert (label.side, label.rest) == (side, "")


def test_headings_and_bold_lines_need_no_colon() -> None:
    assert find_label("### Response") is not None
    assert find_label("## Pergunta 12") is not None
    assert find_label("**Jawaban**") is not None


@pytest.mark.parametrize(
    "line",
    ["Answer the question", "Question", "## Answer to life", "# A", "answering: x", "A x", "P: x", "**Answer** is", ""],
)
def test_what_is_no_label(line: str) -> None:
    assert find_label(line) is None


def test_a_label_in_letters_with_separate_accents() -> None:
    label = find_label("Instruc\u0327a\u0303o: a")
    assert label is not None
    assert label.word == "instrucao"


def test_answers_keep_their_blank_lines_and_indentation(path: Path) -> None:
    text = "Question: How?\nAnswer: First.\n\n    code\n\n- a\n- b\n\nQuestion: And?\nAnswer: So.\n"
    assert said(path, text) == [
        [("user", "How?"), ("assistant", "First.\n\n    code\n\n- a\n- b")],
        [("user", "And?"), ("assistant", "So.")],
    ]


def test_turns_without_a_gap_are_one_conversation(path: Path) -> None:
    text = "System: Be kind.\n\nUser: Hi\nAssistant: Hello\nUser: You?\nAssistant: Fine\n\nUser: Bye\nAssistant: Bye\n"
    assert said(path, text) == [
        [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "You?"), ("assistant", "Fine")],
        [("user", "Bye"), ("assistant", "Bye")],
    ]


def test_a_blank_line_before_the_answer_ends_nothing(path: Path) -> None:
    text = "### Instruction:\n\nAdd.\n\n### Input:\n\n1, 2\n\n### Response:\n\n3\n\n### Instruction:\n\nStop.\n\n### Response:\n\nOK\n"
    assert said(path, text) == [
        [("user", "Add.\n1, 2"), ("assistant", "3")],
        [("user", "Stop."), ("assistant", "OK")],
    ]


def test_input_and_output_alone(path: Path) -> None:
    assert said(path, "Input: a\nOutput: b\n\nInput: c\nOutput: d\n") == [
        [("user", "a"), ("assistant", "b")],
        [("user", "c"), ("assistant", "d")],
    ]


def test_a_rule_inside_an_answer_stays(path: Path) -> None:
    text = "Q: a\nA: one\n---\ntwo\n---\nQ: b\nA: three\n---\n"
    assert said(path, text) == [
        [("user", "a"), ("assistant", "one\n---\ntwo")],
        [("user", "b"), ("assistant", "three")],
    ]


def test_other_labels_inside_an_answer_are_text(path: Path) -> None:
    text = "Instruction: Show.\nResponse: It prints\nOutput: 3\nInput: 2\n\nInstruction: More.\nResponse: No.\n"
    assert said(path, text)[0][1] == ("assistant", "It prints\nOutput: 3\nInput: 2")


def test_labels_inside_a_code_block_are_text(path: Path) -> None:
    text = "User: Show.\nAssistant:\n```\nUser: x\nAssistant: y\n```\nDone.\n\nUser: More.\nAssistant: No.\n"
    assert said(path, text) == [
        [("user", "Show."), ("assistant", "```\nUser: x\nAssistant: y\n```\nDone.")],
        [("user", "More."), ("assistant", "No.")],
    ]


def test_a_code_block_that_is_never_closed_costs_one_example(path: Path) -> None:
    assert len(said(path, "User: a\nAssistant: ```\nx\n\nUser: b\nAssistant: c\n\nUser: d\nAssistant: e\n")) == 3


def test_letters_count_where_a_document_begins_with_them(path: Path) -> None:
    assert said(path, "P: um\nR: dois\n\nP: três\nR: quatro\n") == [
        [("user", "um"), ("assistant", "dois")],
        [("user", "três"), ("assistant", "quatro")],
    ]
    assert said(path, "Pergunta: um\nResposta: dois\nR: três\n") == [[("user", "um"), ("assistant", "dois\nR: três")]]


@pytest.mark.parametrize("marks", [("1. ", "", "2. "), ("- ", "- ", "- "), ("> ", "> ", "> ")])
def test_numbers_and_bullets_in_front_of_labels(path: Path, marks: tuple[str, str, str]) -> None:
    one, answer, two = marks
    text = f"{one}**Question:** a\n{answer}**Answer:** b\n\n{two}**Question:** c\n{answer}**Answer:** d\n"
    assert said(path, text) == [[("user", "a"), ("assistant", "b")], [("user", "c"), ("assistant", "d")]]
    plain = "Question: a\nAnswer: Steps\n\n1. Question: the need\n2. Act\n\nQuestion: c\nAnswer: d\n"
    assert len(said(path, plain)) == 2


def test_choices_are_no_answers(path: Path) -> None:
    text = "Question: Capital?\nA: Dili\nB: Baucau\nAnswer: A\n\nQuestion: Sea?\nAnswer: Timor Sea\n"
    assert said(path, text)[0] == [("user", "Capital?\nA: Dili\nB: Baucau"), ("assistant", "A")]
    assert said(path, "Question: Capital?\nA: Dili\n") == [[("user", "Capital?"), ("assistant", "Dili")]]
    assert len(said(path, "Q: a\nA: b\n\nQuestion: c\nAnswer: d\n\nQ: e\nAnswer: f\n")) == 3


def test_titles_are_left_out_with_a_word_about_it(path: Path) -> None:
    text = "# My pairs\n\nAbout me.\n\nQ: a\nA: b\n\n## Part two\n\nQ: c\nA: d\n"
    assert said(path, text) == [[("user", "a"), ("assistant", "b")], [("user", "c"), ("assistant", "d")]]
    faults = [item for item in read(path) if isinstance(item, Fault)]
    assert [fault.code for fault in faults] == ["stray_text", "stray_text"]
    assert str(faults[0].message) == "Lines 1 to 3 stand outside any example and are left out: “# My pairs”."


def test_faults_name_row_and_line(path: Path) -> None:
    path.write_text("Q: a\nA:\n\nQ: b\n\nQ: c\nA: d\n\nQ:\nA: e\n", encoding="utf-8")
    found = [(item.code, item.row, item.line) for item in read(path) if isinstance(item, Fault)]
    assert found == [("empty_answer", 1, 1), ("no_answer", 2, 4), ("empty_prompt", 4, 9)]


def test_a_bad_byte_costs_its_example_only(path: Path) -> None:
    path.write_bytes(b"Q: a\nA: \xe9\xe9\n\nQ: b\nA: ok\n")
    items = list(read(path))
    assert isinstance(items[0], Fault)
    assert items[0].code == "not_utf8"
    assert str(items[0].message) == "Line 2, column 4: the byte E9 is not UTF-8 text."
    assert isinstance(items[1], Example)


def test_prose_is_plain(path: Path) -> None:
    path.write_text("A long story.\n\nNote: it ends well.\n\nThe end, or so they say.\n", encoding="utf-8")
    source = read(path)
    assert source.format == "plain"
    assert [item.text for item in source if isinstance(item, Example)] == [
        "A long story.",
        "Note: it ends well.",
        "The end, or so they say.",
    ]
