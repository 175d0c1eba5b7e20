"""A folder of files as one dataset, columns that have to be asked for, and datasets of the hub in their cache's layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afina import actions
from afina.core.errors import AfinaError
from afina.core.paths import Home
from afina.data import hub
from afina.data.cache import checked
from afina.data.checks import check
from afina.data.examples import Example, Turn
from afina.data.faults import Fault
from afina.data.formats import Mapping
from afina.data.mapping import forget, guess_mapping, make_mapping, read_as_remembered, remember, remembered
from afina.data.readers import read
from afina.data.store import freeze, open_version
from tests.data.test_checks import by_code, rows, write


def test_the_files_of_a_folder_are_one_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    (folder / "deeper").mkdir(parents=True)
    write(folder / "a.jsonl", rows(3))
    (folder / "b.json").write_text(json.dumps([{"instruction": "x"}, {"instruction": "y", "output": "z"}]))
    pq.write_table(pa.table({"instruction": ["u"], "output": ["v"]}), folder / "deeper" / "c.parquet")
    (folder / "README.md").write_text("# About")
    (folder / ".hidden.jsonl").write_text("{")
    (folder / "code.py").write_text("print(1)")
    (folder / "out.jsonl").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.jsonl")
    items = list(read(folder))
    assert [item.row for item in items if isinstance(item, Example)] == [1, 2, 3, 5, 6]
    [fault] = [item for item in items if isinstance(item, Fault)]
    assert (fault.row, fault.line, fault.file) == (4, 1, "b.json")
    assert str(fault.message) == "b.json: Row 4: “output” is missing; this row has instruction."
    report = check(folder)
    assert (report.format, report.rows) == ("alpaca", 6)


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows(60))
    (tmp_path / "b.csv").write_text("question,answer\nWho?,Me.\n")
    report = check(tmp_path)
    [group] = report.errors
    assert group.code == "mixed_formats"
    assert str(group.message) == (
        "b.csv: the rows of this file are prompt and answer, but those of a.jsonl are instruction and output."
    )
    assert report.rows == 60


def test_several_faults_in_a_folder_name_the_file_of_the_first(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows(3))
    (tmp_path / "b.jsonl").write_text('{"instruction": "a"\n{"instruction": "b"\n')
    group = by_code(check(tmp_path).errors)["bad_json"]
    assert (group.rows, group.lines) == ([4, 5], [1, 2])
    assert str(group.message) == "2 rows cannot be read as JSON, the first in line 1. The first is in b.jsonl."


def test_an_empty_folder(tmp_path: Path) -> None:
    assert [group.code for group in check(tmp_path).errors] == ["empty_file"]


def test_a_folder_in_the_datasets_folder(home: Home) -> None:
    folder = home.datasets / "proverbs"
    folder.mkdir()
    write(folder / "a.jsonl", rows(40))
    (home.datasets / "empty").mkdir()
    [info] = actions.list_datasets(home)
    assert (info.name, info.rows, info.status) == ("proverbs", 40, "ready")
    write(folder / "b.jsonl", [{"instruction": "new", "output": "row"}])
    [info] = actions.list_datasets(home)
    assert info.rows == 41
    assert checked(home, folder).rows == 41
    assert freeze(home, folder).rows == 41
    actions.delete_dataset(home, "proverbs")
    assert actions.list_datasets(home) == []


UNKNOWN = "Nu,Soru,Javob\n1,Nima gap?,Yaxshi rahmat va sizda.\n2,Qayerda u?,Uyda otiribdi hozir ham.\n3,Kim bu odam?,Bu mening eski do'stim.\n"


def test_columns_are_guessed_asked_for_and_remembered(home: Home) -> None:
    path = home.datasets / "table.csv"
    path.write_text(UNKNOWN)
    assert [group.code for group in check(path).errors] == ["unknown_format"]
    found = guess_mapping(path)
    assert found is not None
    assert found.columns == ["Nu", "Soru", "Javob"]
    assert found.samples[0] == {"Nu": "1", "Soru": "Nima gap?", "Javob": "Yaxshi rahmat va sizda."}
    assert found.mapping == Mapping("soru", "javob")
    mapping = make_mapping(prompt="Soru", answer="Javob")
    assert mapping == found.mapping
    remember(home, path, mapping)
    assert remembered(home, path) == mapping
    [first, *_] = [item for item in read_as_remembered(home, path) if isinstance(item, Example)]
    assert first.turns == (Turn("user", "Nima gap?"), Turn("assistant", "Yaxshi rahmat va sizda."))
    assert check(path, mapping=mapping).errors == checked(home, path).errors == []
    assert [item.row for item in read(path, mapping) if isinstance(item, Example)][:2] == [1, 2]
    assert next(open_version(home, freeze(home, path).sha256)).turns == first.turns
    assert guess_mapping(path) is not None, "it can be asked again"
    path.write_text(UNKNOWN + "4,,Nima\n5,Nima,\n")
    said = {group.code: str(group.message) for group in check(path, mapping=mapping).errors}
    assert said == {"empty_answer": "Row 5: the answer is empty."} or said == {
        "missing_field": "Row 5: “javob” is missing; this row has nu, soru."
    }
    forget(home, path)
    assert remembered(home, path) is None


def test_rows_that_stand_in_validation_data_with_columns_of_its_own(home: Home) -> None:
    path = home.datasets / "held.csv"
    path.write_text(UNKNOWN)
    remember(home, path, make_mapping(prompt="Soru", answer="Javob"))
    train = home.datasets / "train.csv"
    train.write_text(
        "question,answer\nKim bu odam?,Bu mening eski do'stim.\n" + "".join(f"q{n},a{n}\n" for n in range(60))
    )
    [group] = checked(home, train, validation=path).warnings
    assert (group.code, group.rows) == ("leak", [1])


def test_the_api_of_actions_uses_what_is_remembered(home: Home) -> None:
    path = home.datasets / "table.csv"
    path.write_text(UNKNOWN)
    [info] = actions.list_datasets(home)
    assert info.status == "broken"
    remember(home, path, make_mapping(prompt="Soru", answer="Javob"))
    [info] = actions.list_datasets(home)
    assert (info.status, info.format, info.rows) == ("ready", "table", 3)
    assert actions.dataset_rows(home, "table.csv")["rows"][0]["turns"][0]["content"] == "Nima gap?"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"id": "1", "customer_question": "How?", "agent_response": "So."},
            Mapping("customer_question", "agent_response"),
        ),
        ({"label": "x", "body_of_text": "A long text about many things that happened."}, Mapping(text="body_of_text")),
        (
            {"Titulu": "Kona-ba kafé", "Konteúdu": "Kafé moris iha foho, no ema ku'u ho liman."},
            Mapping("titulu", "konteudu"),
        ),
        ({"c": "1", "d": "2"}, None),
    ],
)
def test_guesses(tmp_path: Path, columns: dict[str, str], expected: Mapping | None) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        [{name: f"{value} {n}" if " " in value else value for name, value in columns.items()} for n in range(5)],
    )
    found = guess_mapping(path)
    assert found is not None
    assert found.mapping == expected


def test_no_mapping_is_asked_for_where_none_is_needed(tmp_path: Path) -> None:
    assert guess_mapping(write(tmp_path / "rows.jsonl", rows(3))) is None
    (tmp_path / "text.txt").write_text("Just a text.")
    assert guess_mapping(tmp_path / "text.txt") is None


def test_mappings_that_make_no_sense(home: Home) -> None:
    path = home.datasets / "table.csv"
    path.write_text(UNKNOWN)
    for columns in (
        {"prompt": "Soru"},
        {},
        {"prompt": "Soru", "answer": "Soru"},
        {"prompt": "Soru", "answer": "Javob", "text": "Nu"},
    ):
        with pytest.raises(AfinaError) as refused:
            make_mapping(**columns)
        assert refused.value.code == "bad_mapping"
    with pytest.raises(AfinaError) as refused:
        remember(home, path, make_mapping(prompt="Soru", answer="Nothing"))
    assert "has no columns soru, nothing" in str(refused.value)


def snapshot(cache: Path, repo: str, files: dict[str, str]) -> Path:
    """A dataset in the layout of huggingface_hub's cache: blobs, a snapshot of links to them, and a ref."""
    root = cache / f"datasets--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    for number, (name, content) in enumerate(files.items()):
        blob = root / "blobs" / f"{number:040x}"
        link = root / "snapshots" / commit / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(content)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    return root


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(place))
    return place


def line(question: str) -> str:
    return json.dumps({"instruction": question, "output": "answer"}) + "\n"


def test_a_dataset_of_the_hub_out_of_its_cache(home: Home, cache: Path) -> None:
    files = {"data/train-00000-of-00002.jsonl": line("a"), "data/train-00001-of-00002.jsonl": line("b")}
    snapshot(
        cache, "owner/name", {**files, "data/test-00000-of-00001.jsonl": line("t"), "README.md": "# Hi", "load.py": "x"}
    )
    folder = hub.bring(home, "hub:owner/name")
    assert folder == home.datasets / "owner--name"
    assert [e.turns[0].content for e in read(folder) if isinstance(e, Example)] == ["a", "b"]
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert actions.check_dataset(home, "hub:owner/name:test").rows == 1
    assert {info.name for info in actions.list_datasets(home)} == {"owner--name", "owner--name--test"}
    with pytest.raises(AfinaError) as missing:
        hub.bring(home, "hub:owner/name:dev")
    assert missing.value.code == "no_split"
    assert "It has: test, train." in str(missing.value)


@pytest.mark.parametrize(
    "declared",
    [
        "[{split: train, path: 'one/*.jsonl'}, {split: test, path: [two.jsonl]}]",
        "{train: one/*.jsonl, test: two.jsonl}",
    ],
)
def test_splits_that_the_readme_declares(tmp_path: Path, declared: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.jsonl").write_text(line("a"))
    (tmp_path / "two.jsonl").write_text(line("b"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {declared}\n---\n# Hi")
    found = hub.find_splits(tmp_path)
    assert {split: [path.name for path in paths] for split, paths in found.items()} == {
        "train": ["x.jsonl"],
        "test": ["two.jsonl"],
    }


def test_files_without_a_split_are_for_training(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(line("a"))
    assert list(hub.find_splits(tmp_path)) == ["train"]


def test_without_a_network(home: Home, cache: Path) -> None:
    with pytest.raises(AfinaError) as refused:
        hub.bring(home, "hub:owner/other")
    assert refused.value.code == "no_network"
    assert "is not on this machine, and the hub cannot be reached" in str(refused.value)
    assert list(home.datasets.iterdir()) == []
    for name in ("hub:", "hub:owner", "hub:../../etc", "hub:a/b/c", "hub:owner/name:"):
        with pytest.raises(AfinaError) as refused:
            hub.bring(home, name)
        assert refused.value.code == "bad_name"
