"""The commands as people type them: what they print, how they fail, their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from afina.cli import main
from afina.core.paths import Home
from afina.core.spec import TrainSpec
from tests.runs import helpers

Shell = Any


@pytest.fixture
def home(home: Home) -> Home:
    return helpers.furnish(home)


@pytest.fixture
def afina(home: Home, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--home", str(home.root)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_help_is_quick_and_names_every_command() -> None:
    command = [sys.executable, "-m", "afina.cli", "--help"]
    times = []
    for _ in range(3):
        before = psutil.Process().cpu_times()  # not the clock: the machine may be busy with other tests
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = psutil.Process().cpu_times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    for name in ("serve", "train", "runs", "models", "datasets", "chat", "doctor"):
        assert f"  {name} " in done.stdout
    assert min(times) < 0.5


def test_every_setting_has_a_flag_with_its_help(afina: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = afina("train", "--help")
    assert code == 0
    for name in TrainSpec.model_fields:
        assert f"--{name.replace('_', '-')} " in out


def test_all_that_is_wrong_with_a_run_is_told_in_sentences_and_as_json(afina: Shell) -> None:
    wrong = ("train", "--model", "nobody", "--dataset", "nothing.txt", "--epochs", "soon", "--lora-rank", "0")
    code, out, err = afina(*wrong)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 4
    assert "Traceback" not in err
    code, _, err = afina(*wrong, "--json")
    assert code == 2
    found = json.loads(err)["error"]
    assert {problem["code"] for problem in found["problems"]} == {
        "wrong_type",
        "out_of_range",
        "model_not_found",
        "dataset_not_found",
    }


def test_a_spec_file_goes_under_the_flags(afina: Shell, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("model: nobody\ndataset: [numbers.json]\nlearning-rate: 3\nepochs: 2\n")
    code, _, err = afina("train", "--spec", str(file), "--learning-rate", "1e-4", "--json")
    assert code == 2
    assert [problem["code"] for problem in json.loads(err)["error"]["problems"]] == ["model_not_found"]
    for text in ("- just\n- a list\n", "a: [", ""):
        file.write_text(text)
        code, _, err = afina("train", "--spec", str(file), "--json")
        assert (code, json.loads(err)["error"]["code"]) == (2, "bad_spec_file")
    code, _, err = afina("train", "--spec", str(tmp_path / "none.yaml"))
    assert code == 2
    assert "No such file" in err


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["runs", "list", "--colour"], ["runs", "show"], ["models", "add"]]
)
def test_a_mistyped_command_is_wrong_input(afina: Shell, arguments: list[str]) -> None:
    code, _, err = afina(*arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    code, _, err = afina(*arguments, "--json")
    assert (code, json.loads(err)["error"]["code"]) == (2, "usage")


def test_checking_a_file(afina: Shell, home: Home, tmp_path: Path) -> None:
    code, out, _ = afina("datasets", "check", "numbers.json", "--json")
    report = json.loads(out.splitlines()[-1])
    assert (code, report["format"], report["rows"], report["errors"]) == (0, "alpaca", 12, [])
    assert report["tokens"] > 12
    assert [group["code"] for group in report["warnings"]] == ["few_rows"]
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n{"prompt"\n')
    code, out, _ = afina("datasets", "check", str(broken), "--json")
    report = json.loads(out.splitlines()[-1])
    assert code == 2
    assert {group["code"] for group in report["errors"]} == {"missing_field", "bad_json"}
    assert all({"code", "count", "rows", "message", "remedy"} <= set(group) for group in report["errors"])
    code, out, _ = afina("datasets", "check", str(broken))
    assert code == 2
    assert "missing_field" in out
    assert afina("datasets", "check", "none.txt")[0] == 2


def test_lists_in_words_and_as_json(afina: Shell, home: Home) -> None:
    assert "numbers.json" in afina("datasets", "list")[1]
    assert json.loads(afina("datasets", "list", "--json")[1])[0]["rows"] == 12
    assert "small" in afina("models", "list")[1]
    assert json.loads(afina("models", "list", "--json")[1])[0]["parameters"] == 2
    assert "no runs yet" in afina("runs", "list")[1]
    run = helpers.start(home, "one")
    assert "one" in afina("runs", "list")[1]
    assert json.loads(afina("runs", "list", "--json")[1])[0]["id"] == run.id
    assert "lora_rank" in afina("runs", "show", "one")[1]
    assert json.loads(afina("runs", "show", run.id, "--json")[1])["queue_position"] == 1


def test_stopping_and_deleting(afina: Shell, home: Home) -> None:
    helpers.start(home, "one")
    assert afina("runs", "stop", "one")[0] == 0
    assert afina("runs", "stop", "one")[0] == 1
    code, _, err = afina("runs", "resume", "one")
    assert code == 1
    assert "checkpoint" in err
    code, _, err = afina("runs", "delete", "one")
    assert code == 2
    assert "--yes" in err
    assert afina("runs", "delete", "one", "--yes")[0] == 0
    assert afina("runs", "show", "one")[0] == 2
    assert afina("models", "remove", "small", "--yes")[0] == 0
    assert not (home.models / "small").exists()


def test_the_home_may_stand_before_the_command(home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--home", str(home.root), "datasets", "list"]) == 0
    assert "numbers.json" in capsys.readouterr().out


def test_the_doctor_knows_the_machine(afina: Shell) -> None:
    code, out, _ = afina("doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["cores"] >= 1
    assert facts["memory"]["total"] > 10**8
    assert facts["disk"]["free"] > 0
    assert facts["versions"]["torch"].startswith("2.13")
    assert isinstance(facts["accelerators"], list)
    assert "torch" in afina("doctor")[1]


def test_it_speaks_the_language_of_the_terminal(afina: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    english = afina("runs", "show", "nobody")[2]
    monkeypatch.setenv("AFINA_LANGUAGE", "pt")
    portuguese = afina("runs", "show", "nobody")[2]
    assert "nobody" in portuguese
    assert portuguese != english


def test_what_nobody_foresaw_is_a_sentence_and_a_file(
    afina: Shell, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.root / "afina.db").mkdir()
    code, _, err = afina("runs", "list")
    assert code == 1
    assert "Traceback" not in err
    assert err.strip()


def test_a_closed_pipe_is_no_error(home: Home) -> None:
    for _ in range(30):
        helpers.start(home)
    listing = f"{sys.executable} -m afina.cli runs list --home {home.root} | head -1"
    done = subprocess.run(["sh", "-c", listing], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_check_names_long_rows_and_those_of_the_validation_dataset(afina: Shell, tmp_path: Path) -> None:
    rows = [{"prompt": f"Word {n}", "completion": "long " * (3000 if n == 2 else 1) + str(n)} for n in range(60)]
    file, other = tmp_path / "words.jsonl", tmp_path / "other.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    other.write_text("\n".join(map(json.dumps, rows[50:])))
    code, out, _ = afina("datasets", "check", str(file), "--validation", str(other), "--json")
    found = {group["code"]: group for group in json.loads(out)["warnings"]}
    assert (code, set(found)) == (0, {"too_long", "leak"})
    assert found["too_long"]["rows"] == [3]
    assert (found["leak"]["count"], found["leak"]["rows"][0]) == (10, 51)
    code, _, err = afina("datasets", "check", str(file), "--validation", "nothing", "--json")
    assert (code, json.loads(err)["error"]["code"]) == (2, "dataset_not_found")
