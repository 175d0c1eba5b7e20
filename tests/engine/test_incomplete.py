"""Weights that are not all there: nothing is ever computed with numbers made up in their place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from afina.core.errors import AfinaError, Problem
from afina.data.template import ChatTokenizer
from afina.engine import model as models
from afina.engine import output
from afina.engine.convert import convert
from afina.engine.export import export
from afina.engine.generate import Generator
from tests import tiny
from tests.invariant import common

GONE = "model.layers.1.mlp.down_proj.weight"


def spoil(file: Path, *gone: str) -> Path:
    """Take tensors out of `file`, all of them where none is named; returns its folder."""
    left = {name: tensor for name, tensor in load_file(file).items() if gone and name not in gone}
    save_file(left, file, {"format": "pt"})
    return file.parent


def problem_of(work: Callable[[], object]) -> Problem:
    with pytest.raises(AfinaError) as caught:
        work()
    (problem,) = caught.value.problems
    return problem


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A LoRA of the tiny model that a test may spoil."""
    common.run(common.job(tiny_model, tmp_path / "first", rows=4, held=0))
    return tmp_path / "first" / "adapter"


def everywhere(base: Path, folder: Path, adapters: tuple[Path, ...] = ()) -> list[Problem]:
    """What training, chat and export say of the same model."""
    return [
        problem_of(lambda: common.run(common.job(base, folder / "run", adapter_folders=adapters))),
        problem_of(lambda: Generator.load(base, adapters, device="cpu")),
        problem_of(lambda: export(base, adapters, folder / "exported")),
    ]


def test_a_base_that_lacks_a_tensor(base: Path, tmp_path: Path) -> None:
    spoil(base / "model.safetensors", GONE)
    for problem in everywhere(base, tmp_path):
        assert (problem.code, problem.value) == ("broken_model", GONE)
        assert "“base” are not complete: model.safetensors lacks" in str(problem.message)
        assert f"(1: {GONE})" in str(problem.message)
        assert problem.remedy
    assert not (tmp_path / "exported").exists()


def test_a_base_without_any_tensor(base: Path, tmp_path: Path) -> None:
    spoil(base / "model.safetensors")
    for problem in everywhere(base, tmp_path):
        assert problem.code == "broken_model"
        assert "lm_head.weight, model.embed_tokens.weight, " in str(problem.message)


def test_a_base_of_several_files_names_their_index(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    parts = {
        "model-00001-of-00002.safetensors": sorted(weights)[:8],
        "model-00002-of-00002.safetensors": sorted(weights)[8:],
    }
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, base / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert models.load(base, torch.float32, torch.device("cpu"))
    spoil(base / "model-00002-of-00002.safetensors", GONE)
    problem = problem_of(lambda: models.load(base, torch.float32, torch.device("cpu")))
    assert (problem.code, problem.value) == ("broken_model", GONE)
    assert "model.safetensors.index.json" in str(problem.message)


def test_a_base_of_another_size_than_its_config_says(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    problem = problem_of(lambda: models.load(base, torch.float32, torch.device("cpu")))
    assert problem.code == "broken_model"
    assert "have another shape (6: model.layers.0.mlp.down_proj.weight, " in str(problem.message)


def test_it_is_not_added(base: Path, tmp_path: Path) -> None:
    """The child that adds models says so before anything is copied."""
    spoil(base / "model.safetensors", GONE)
    problem = problem_of(lambda: convert(base, tmp_path / "models" / "x"))
    assert (problem.code, problem.field, problem.value) == ("broken_model", "source", GONE)
    command = [sys.executable, "-m", "afina.runs.importer", str(base), str(tmp_path / "models" / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout.splitlines()[-1])["error"]["code"] == "broken_model"
    assert not (tmp_path / "models" / "x").exists()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_head_that_is_the_embeddings_is_not_missed(family: str, tmp_path: Path) -> None:
    folder = tiny.build_model(tmp_path / family, family)
    config = json.loads((folder / "config.json").read_text())
    names = set(load_file(folder / "model.safetensors"))
    assert ("lm_head.weight" not in names) == config["tie_word_embeddings"]
    convert(folder, tmp_path / "added")
    assert models.load(tmp_path / "added", torch.float32, torch.device("cpu"))


def test_an_adapter_that_lacks_a_tensor(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    spoil(adapter / "adapter_model.safetensors", name)
    for problem in everywhere(tiny_model, tmp_path, (adapter,)):
        assert (problem.code, problem.value) == ("broken_model", name)
        assert "adapter_model.safetensors lacks" in str(problem.message)
        assert problem.remedy


def test_an_adapter_without_any_tensor(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    spoil(adapter / "adapter_model.safetensors")
    for problem in everywhere(tiny_model, tmp_path, (adapter,)):
        assert problem.code == "broken_model"
    job = common.job(tiny_model, tmp_path / "beside", adapter_folders=(adapter,), quantization="4bit")
    assert problem_of(lambda: common.run(job)).code == "broken_model"


def test_whole_ones_are_taken(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    common.run(common.job(tiny_model, tmp_path / "second", rows=4, adapter_folders=(adapter,)))
    export(tiny_model, (adapter,), tmp_path / "exported")
    assert ChatTokenizer.load(tmp_path / "exported").has_template
    assert output.TOKENIZER_FILES[0] in {path.name for path in (tmp_path / "exported").iterdir()}
