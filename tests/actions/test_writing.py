"""A dataset typed or pasted into the page: what it is taken for, and kept as a file."""

from __future__ import annotations

import pytest

from afina import actions
from afina.core.errors import AfinaError
from afina.core.paths import Home

PAIRS = "Question: Where is Dili?\nAnswer: In Timor-Leste.\n\nPergunta: Saida mak tais?\nResposta: Tais maka hena.\n"


def test_a_text_is_understood_as_a_file_would_be(home: Home) -> None:
    found = actions.preview_text(home, PAIRS)
    assert (found.report.format, found.report.rows) == ("pairs", 2)
    assert found.rows[1]["turns"][1] == {"role": "assistant", "content": "Tais maka hena."}
    half = actions.preview_text(home, "Question: a\nAnswer:\n")
    assert [group.code for group in half.report.errors] == ["empty_answer"]
    assert half.rows[0]["problems"][0].code == "empty_answer"
    assert actions.preview_text(home, "").rows == []
    assert actions.preview_text(home, "half \ud800 a character").report.rows == 1
    assert not list(home.datasets.iterdir())
    assert not list(home.state.glob("written-*"))


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("towns", PAIRS, "towns.txt"),
        ("towns.txt", PAIRS, "towns.txt"),
        (
            "chat",
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
            "chat.jsonl",
        ),
        ("list", '[{"instruction": "a", "output": "b"}]', "list.json"),
        ("sheet", "question\tanswer\na\tb\n", "sheet.csv"),
    ],
)
def test_it_is_kept_under_an_ending_that_fits(home: Home, name: str, text: str, kept: str) -> None:
    info = actions.write_dataset(home, name, text)
    assert info.name == kept
    assert (home.datasets / kept).read_text() == text
    assert actions.dataset(home, kept)[1].errors == []


def test_nothing_and_bad_names_are_refused(home: Home) -> None:
    for name, text, expected in (("a", " \n", "empty_text"), ("../a", PAIRS, "bad_name"), (" ", PAIRS, "bad_name")):
        with pytest.raises(AfinaError) as caught:
            actions.write_dataset(home, name, text)
        assert caught.value.code == expected
