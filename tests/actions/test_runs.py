"""Starting: everything that is wrong at once, and a run folder that can be repeated from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from afina import actions
from afina.actions import starting
from afina.core.errors import AfinaError
from afina.core.files import read_json
from afina.core.paths import Home
from tests.runs import helpers


@pytest.fixture
def home(home: Home) -> Home:
    return helpers.furnish(home)


def codes(home: Home, **spec: object) -> list[tuple[str, str | None]]:
    with pytest.raises(AfinaError) as caught:
        actions.start_run(home, spec)
    assert list(home.runs.iterdir()) == []
    return [(problem.code, problem.field) for problem in caught.value.problems]


def test_all_that_is_wrong_is_told_at_once(home: Home) -> None:
    (home.datasets / "empty.json").write_text('[{"instruction": "x", "output": ""}, {"instruction": "y"}]')
    found = codes(
        home, model="nobody", dataset=["empty.json", "nothing.json"], epochs=-1, speed=9, validation_dataset="neither"
    )
    assert ("out_of_range", "epochs") in found
    assert ("unknown_setting", "speed") in found
    assert ("model_not_found", "model") in found
    assert ("empty_answer", "dataset") in found
    assert ("missing_field", "dataset") in found
    assert ("dataset_not_found", "dataset") in found
    assert ("dataset_not_found", "validation_dataset") in found


@pytest.mark.parametrize("spec", [{}, {"model": 3, "dataset": 4}, {"model": "small", "dataset": []}])
def test_a_spec_without_the_least_is_wrong_input(home: Home, spec: dict[str, object]) -> None:
    assert codes(home, **spec)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".hidden", "con", "a\x00b"])
def test_names_never_lead_out_of_the_home(home: Home, name: str, tmp_path: Path) -> None:
    assert {code for code, _ in codes(home, model=name, dataset=name)} <= {
        "model_not_found",
        "bad_name",
        "dataset_not_found",
    }


def test_a_run_remembers_the_model_and_not_its_alias(home: Home) -> None:
    shutil.copytree(home.models / "small", home.models / "SmolLM2-135M-Instruct")
    run = actions.start_run(home, {"model": "starter", "dataset": "numbers.json"})
    assert read_json(home.runs / run.id / "spec.json")["model"] == "SmolLM2-135M-Instruct"


def test_the_run_folder_says_what_is_trained_from_what(home: Home) -> None:
    run = helpers.start(home, "first")
    folder = home.runs / run.id
    spec, manifest = read_json(folder / "spec.json"), read_json(folder / "manifest.json")
    assert spec["learning_rate"] == 2e-4
    assert manifest["model"] == {"id": "small", "folder": str(home.models / "small"), "adapters": [], "ancestors": []}
    part = manifest["datasets"][0]
    assert (part["name"], part["rows"], part["format"], len(part["sha256"])) == ("numbers.json", 12, "alpaca", 64)
    assert manifest["versions"]["torch"].startswith("2.13")
    (home.datasets / "numbers.json").unlink()
    from afina.data.store import open_version

    assert len(list(open_version(home, part["sha256"]))) == 12


def test_two_runs_of_one_second_never_share_an_id(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["id-a", "id-a", "id-a", "id-b", "id-b", "id-c"])
    monkeypatch.setattr(starting, "new_id", lambda created: next(drawn))
    prepared = starting.prepare(home, {"model": "small", "dataset": "numbers.json"})
    first, second = prepared.write(home), prepared.write(home)  # both still being made
    assert (first.name, second.name) == (".new-id-a", ".new-id-b")
    starting.publish(second)
    third = prepared.write(home)  # draws what is published by now
    assert third.name == ".new-id-c"
    assert sorted(path.name for path in home.runs.iterdir()) == [".new-id-a", ".new-id-c", "id-b"]


def test_a_model_without_chat_template_asks_for_one_where_there_are_conversations(home: Home) -> None:
    folder = home.models / "small"
    config = read_json(folder / "tokenizer_config.json")
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert codes(home, model="small", dataset="numbers.json") == [("template_mismatch", "chat_template")]
    [problem] = actions.plan_run(home, {"model": "small", "dataset": "numbers.json"}).problems
    assert "no chat template; choose one" in str(problem.message)
    (home.datasets / "words.txt").write_text("Only a text.\n\nAnd another one.\n")
    assert actions.start_run(home, {"model": "small", "dataset": "words.txt"}).status == "queued"
    assert actions.start_run(home, {"model": "small", "dataset": "numbers.json", "chat_template": "plain"}).id


def test_names_are_made_and_numbered(home: Home) -> None:
    assert [helpers.start(home).name for _ in range(3)] == ["numbers-lora", "numbers-lora-2", "numbers-lora-3"]
    assert [helpers.start(home, "mine").name, helpers.start(home, "mine").name] == ["mine", "mine-2"]
    assert helpers.start(home, "small").name == "small-2"
    assert helpers.start(home, "starter").name == "starter-2"


def test_a_run_is_found_by_id_name_or_beginning(home: Home) -> None:
    run = helpers.start(home, "one")
    assert {actions.get_run(home, ref).id for ref in (run.id, "one", run.id[:-2])} == {run.id}
    other = helpers.start(home, "two")
    for ref, code in (("three", "run_not_found"), ("", "run_not_found"), (other.id[:4], "run_ambiguous")):
        with pytest.raises(AfinaError) as caught:
            actions.get_run(home, ref)
        assert (caught.value.code, caught.value.kind) == (code, "not_found")


def test_paths_are_only_for_those_who_may(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    spec = {"model": str(home.models / "small"), "dataset": str(file)}
    with pytest.raises(AfinaError) as caught:
        actions.start_run(home, spec)
    assert {problem.code for problem in caught.value.problems} == {"model_not_found", "bad_name"}
    assert actions.start_run(home, spec, paths=True).name == "mine-lora"


def test_a_run_that_others_came_from_cannot_be_deleted_before_them(home: Home) -> None:
    parent = helpers.finish(home, helpers.start(home, "parent"))
    child = actions.start_run(home, {"model": "parent", "dataset": "numbers.json", "name": "child"})
    assert read_json(home.runs / child.id / "manifest.json")["model"] == {
        "id": parent.id,
        "folder": str(home.models / "small"),
        "adapters": [parent.output],
        "ancestors": [parent.id],
    }
    with pytest.raises(AfinaError) as caught:
        actions.delete_run(home, "parent")
    assert (caught.value.code, caught.value.kind) == ("has_descendants", "conflict")
    assert "child" in str(caught.value)
    actions.stop_run(home, child.id)
    actions.delete_run(home, "child")
    actions.delete_run(home, "parent")
    assert actions.list_runs(home) == []
    assert list(home.runs.iterdir()) == []


def test_a_plan_counts_what_the_run_will_do(home: Home) -> None:
    spec = {"model": "small", "dataset": "numbers.json", "epochs": 2, "batch_size": 4, "validation_share": 0}
    planned = actions.plan_run(home, spec)
    plan = planned.plan
    assert plan is not None
    assert (plan.rows, plan.validation_rows, plan.steps_per_epoch, plan.total_steps) == (12, 0, 3, 6)
    assert plan.tokens
    assert plan.answer_tokens
    assert plan.tokens > plan.answer_tokens > 0
    assert plan.memory
    assert {group.code for group in planned.warnings} == {"few_rows"}
    assert actions.plan_run(home, {**spec, "max_steps": 4}).plan.total_steps == 4  # type: ignore[union-attr]
    counted = actions.plan_run(home, {**spec, "validation_rows": 5}).plan
    assert counted is not None
    assert (counted.rows, counted.validation_rows) == (7, 5)
    wrong = actions.plan_run(home, {**spec, "epochs": 0, "dataset": "none"}).as_json()
    assert {problem["code"] for problem in wrong["problems"]} == {"out_of_range", "dataset_not_found"}
    assert list(home.runs.iterdir()) == []


def test_the_time_a_run_will_take_is_known_from_the_last_one(home: Home) -> None:
    spec = {"model": "small", "dataset": "numbers.json"}
    assert actions.plan_run(home, spec).plan.seconds is None  # type: ignore[union-attr]
    helpers.finish(home, helpers.start(home))
    assert actions.plan_run(home, spec).plan.seconds  # type: ignore[union-attr]


def test_bits_of_the_base_count_in_the_plan_and_need_their_package(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"model": "small", "dataset": "numbers.json"}
    most = [actions.plan_run(home, {**spec, "quantization": bits}).plan.memory for bits in ("none", "8bit", "4bit")]  # type: ignore[union-attr]
    assert sorted(most, reverse=True) == most  # type: ignore[type-var]
    assert len(set(most)) == 3
    assert codes(home, **spec, quantization="4bit", method="full") == [("quantization_needs_lora", "quantization")]
    monkeypatch.setattr("afina.core.quantization.find_spec", lambda name: None)
    assert codes(home, **spec, quantization="4bit") == [("bitsandbytes_missing", "quantization")]


def test_of_several_datasets_the_one_that_is_meant_is_named(home: Home) -> None:
    (home.datasets / "others.json").write_text((home.datasets / "numbers.json").read_text())
    planned = actions.plan_run(home, {"model": "small", "dataset": ["numbers.json", "others.json"]})
    assert {str(group.message).split(":")[0] for group in planned.warnings} == {"numbers.json", "others.json"}
