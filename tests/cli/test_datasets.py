"""`afina datasets` beyond list and check: the workshop from a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from afina.cli import main, shared
from afina.core.paths import Home

Shell = Any
ROWS = [
    ("Where is Dili?", "In Timor-Leste."),
    ("And Baucau?", ""),
    ("Where is Dili?", "In Timor-Leste."),
    ("And Suai?", "In the south."),
]


@pytest.fixture
def afina(home: Home, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Run a command on a home with one messy table: (exit code, stdout, stderr)."""
    table = "question,answer\n" + "".join(f'"{question}","{answer}"\n' for question, answer in ROWS)
    (home.datasets / "towns.csv").write_text(table)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["datasets", *arguments, "--home", str(home.root)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_from_a_messy_table_to_clean_rows(afina: Shell, home: Home, tmp_path: Path) -> None:
    code, out, _ = afina("check", "towns.csv")
    assert code == 2
    assert "fix empty_answer --way drop" in out
    assert afina("fix", "towns.csv", "empty_answer")[1].splitlines() == [
        "1  Empty answers: rows removed",
        "Removed 1, changed 0, left out 0; 3 rows now.",
    ]
    step = json.loads(afina("fix", "towns.csv", "duplicate", "--json")[1])
    assert (step["removed"], step["rows"], step["parent"]) == (1, 2, 1)
    assert afina("check", "towns.csv")[0] == 0
    assert (home.datasets / "towns.csv").read_text().count("\n") == 5
    code, out, _ = afina("export", "towns.csv")
    assert [json.loads(line)["messages"][0]["content"] for line in out.splitlines()] == ["Where is Dili?", "And Suai?"]
    target = tmp_path / "clean.jsonl"
    assert json.loads(afina("export", "towns.csv", "-o", str(target), "--json")[1])["rows"] == 2
    assert target.read_text() == out


def test_rows_with_their_problems(afina: Shell) -> None:
    code, out, err = afina("show", "towns.csv", "--problem", "empty_answer")
    assert code == 0
    assert "And Baucau?" in out
    assert "the answer is empty" in out
    assert "1 of 1" in err
    shown = json.loads(afina("show", "towns.csv", "--search", "suai", "--json")[1])
    assert [row["row"] for row in shown["rows"]] == [4]


def test_history_diff_and_the_way_back(afina: Shell) -> None:
    afina("fix", "towns.csv", "duplicate")
    code, out, err = afina("diff", "towns.csv")
    assert code == 0
    assert out.splitlines()[:2] == ["- 3", "-   user: Where is Dili?"]
    assert "Removed 1" in err
    told = json.loads(afina("diff", "towns.csv", "0", "1", "--json")[1])
    assert [change["kind"] for change in told["changes"]] == ["removed"]
    assert "Repeated rows: rows removed" in afina("history", "towns.csv")[1]
    back = json.loads(afina("history", "towns.csv", "--to", "0", "--json")[1])
    assert (back["current"], len(back["steps"])) == (0, 2)
    again = json.loads(afina("history", "towns.csv", "--from-file", "--json")[1])
    assert (again["current"], again["changed"]) == (2, False)


def test_columns_are_shown_said_and_remembered(afina: Shell, home: Home) -> None:
    assert "need no explanation" in afina("columns", "towns.csv")[1]
    table = (
        "soru,javob\nNima gap bugun?,Yaxshi rahmat va sizda nima gap.\nQalaysiz ukam?,Men juda yaxshi yashayapman.\n"
    )
    (home.datasets / "words.csv").write_text(table)
    assert afina("check", "words.csv")[0] == 2
    asked = json.loads(afina("columns", "words.csv", "--json")[1])
    assert (asked["columns"], asked["remembered"]) == (["soru", "javob"], False)
    code, out, _ = afina("columns", "words.csv", "--prompt", "soru", "--answer", "javob")
    assert code == 0
    assert "user: Nima gap bugun?" in out
    assert afina("check", "words.csv")[0] == 0
    assert json.loads(afina("show", "words.csv", "--json")[1])["total"] == 2
    code, _, err = afina("columns", "words.csv", "--prompt", "soru", "--json")
    assert (code, json.loads(err)["error"]["code"]) == (2, "bad_mapping")


def test_what_cannot_be_done_is_said_with_its_code(afina: Shell) -> None:
    for arguments, expected in (
        (("fix", "towns.csv", "few_rows"), "no_remedy"),
        (("fix", "towns.csv", "unknown_role"), "nothing_to_fix"),
        (("history", "towns.csv", "--to", "7"), "step_not_found"),
        (("diff", "towns.csv", "3", "4"), "step_not_found"),
        (("show", "none.csv"), "dataset_not_found"),
    ):
        code, out, err = afina(*arguments, "--json")
        assert (code, out) == (2, "")
        assert json.loads(err)["error"]["code"] == expected


def test_a_look_says_on_a_terminal_how_far_it_is(afina: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SOON", -1.0)
    assert "\r" not in afina("check", "towns.csv")[2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = afina("check", "towns.csv", "--max-length", "99")
    assert code == 2
    assert "\rLooking through the file: 100 %" in err
    assert "\r" not in afina("check", "towns.csv", "--max-length", "98", "--json")[2]
