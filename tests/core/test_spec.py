"""Settings: one declaration, all problems at once."""

from __future__ import annotations

import pytest

from afina.core.errors import AfinaError
from afina.core.parsing import parse_spec
from afina.core.spec import TrainSpec, about, choices, limits


def problems(**data: object) -> dict[str | None, str]:
    with pytest.raises(AfinaError) as caught:
        parse_spec(data)
    return {problem.field: problem.code for problem in caught.value.problems}


def test_every_setting_has_a_label_and_one_line_of_help() -> None:
    for name in TrainSpec.model_fields:
        assert about(name).label
        assert about(name).help.endswith(".")
        assert "\n" not in about(name).help


def test_defaults_depend_on_the_method() -> None:
    base = {"model": "m", "dataset": "d.txt"}
    assert parse_spec(base).resolved().learning_rate == 2e-4
    assert parse_spec({**base, "method": "full"}).resolved().learning_rate == 2e-5
    assert parse_spec({**base, "method": "full", "learning_rate": 1e-3}).resolved().learning_rate == 1e-3


def test_datasets_may_be_named_in_every_form() -> None:
    for given in ("d.txt", ["d.txt"], [{"name": "d.txt"}], "d.txt=1"):
        assert [part.model_dump() for part in parse_spec({"model": "m", "dataset": given}).dataset] == [
            {"name": "d.txt", "weight": 1.0}
        ]
    mixed = parse_spec({"model": "m", "dataset": ["a=b.txt", "c.txt=0.2"]}).dataset
    assert [(part.name, part.weight) for part in mixed] == [("a=b.txt", 1.0), ("c.txt", 0.2)]


def test_every_problem_is_told_at_once() -> None:
    found = problems(dataset=[], epochs=-1, method="qlora", batch_size="many", colour="red", seed=-1)
    assert found == {
        "model": "missing_setting",
        "dataset": "out_of_range",
        "epochs": "out_of_range",
        "method": "not_a_choice",
        "batch_size": "wrong_type",
        "colour": "unknown_setting",
        "seed": "out_of_range",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "-inf", "nan"])
def test_numbers_must_be_finite(value: object) -> None:
    assert problems(model="m", dataset="d", epochs=value)["epochs"] in ("out_of_range", "wrong_type")
    assert problems(model="m", dataset="d", learning_rate=value)["learning_rate"] in ("out_of_range", "wrong_type")


def test_a_dataset_stands_once() -> None:
    assert problems(model="m", dataset=["a", "a=0.5"]) == {"dataset": "dataset_twice"}


@pytest.mark.parametrize("data", [None, 3, "x", [], [1]])
def test_what_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(AfinaError):
        parse_spec(data)


def test_empty_form_fields_mean_decide_for_me() -> None:
    spec = parse_spec(
        {"model": "m", "dataset": "d", "learning_rate": "", "max_steps": " ", "name": "", "eval_every": ""}
    )
    assert (spec.learning_rate, spec.max_steps, spec.name, spec.eval_every) == (None, None, None, None)


def test_a_spec_survives_its_own_json() -> None:
    spec = parse_spec({"model": "m", "dataset": "d=0.5", "tags": "a, b", "target_modules": "q_proj,v_proj"}).resolved()
    assert parse_spec(spec.model_dump(mode="json")) == spec
    assert spec.tags == ["a", "b"]
    assert spec.target_modules == ["q_proj", "v_proj"]


def test_limits_and_choices_come_from_the_declaration() -> None:
    assert limits("batch_size") == {"ge": 1, "le": 4096}
    assert limits("learning_rate") == {"gt": 0, "le": 1}
    assert choices("method") == ["lora", "full"]
    assert choices("epochs") == []
    assert choices("name") == []


def test_quantized_weights_are_for_lora() -> None:
    assert parse_spec({"model": "m", "dataset": "d", "quantization": "4bit"}).quantization == "4bit"
    found = problems(model="m", dataset="d", quantization="8bit", method="full")
    assert found == {"quantization": "quantization_needs_lora"}
    assert problems(model="m", dataset="d", quantization="2bit") == {"quantization": "not_a_choice"}
