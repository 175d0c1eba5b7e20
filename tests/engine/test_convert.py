"""Models from outside: what comes in, and what is refused with its name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from afina.core.errors import AfinaError
from afina.data.template import ChatTokenizer
from afina.engine.convert import convert
from tests import tiny


@pytest.fixture
def source(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of a model folder that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "source"))


def code_of(source: Path, destination: Path) -> list[str]:
    with pytest.raises(AfinaError) as caught:
        convert(source, destination)
    assert not destination.exists()
    assert not list(destination.parent.glob(".*.part"))
    return [problem.code for problem in caught.value.problems]


def test_a_folder_is_copied_and_described(source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04")
    shares: list[float] = []
    convert(source, tmp_path / "models" / "tiny", lambda share, message: shares.append(share))
    made = tmp_path / "models" / "tiny"
    assert sorted(path.name for path in made.iterdir()) == [
        "README.md", "afina.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    facts = json.loads((made / "afina.json").read_text())
    assert facts["licence"] == "apache-2.0"
    assert facts["has_chat_template"] is True
    assert facts["parameters"] > 1000
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert ChatTokenizer.load(made).has_template


def test_what_is_refused(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "models" / "x"
    assert code_of(tmp_path / "nowhere", made) == ["not_found"]
    (tmp_path / "notes.txt").write_text("hello")
    assert code_of(tmp_path / "notes.txt", made) == ["not_a_model"]
    (tmp_path / "empty").mkdir()
    assert code_of(tmp_path / "empty", made) == ["not_a_model"]
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    assert code_of(tmp_path / "lora", made) == ["is_an_adapter"]
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert code_of(tmp_path / "bad.gguf", made) == ["gguf_not_supported"]
    (tmp_path / "models" / "there").mkdir(parents=True)
    with pytest.raises(AfinaError) as caught:
        convert(source, tmp_path / "models" / "there")
    assert caught.value.code == "exists"


def test_pickled_weights_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    torch.save({}, source / "pytorch_model.bin")
    assert code_of(source, tmp_path / "x") == ["unsafe_weights"]


def test_every_problem_at_once(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    changed = {
        **config,
        "model_type": "evilnet",
        "auto_map": {"AutoModelForCausalLM": "evil.Evil"},
        "quantization_config": {"bits": 4},
    }
    (source / "config.json").write_text(json.dumps(changed))
    with (source / "model.safetensors").open("r+b") as file:
        file.truncate(2000)
    (source / "tokenizer.json").unlink()
    codes = code_of(source, tmp_path / "x")
    assert codes == ["unknown_architecture", "quantised_weights", "broken_weights", "no_tokenizer"]


def test_a_missing_shard_is_named(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    )
    assert code_of(source, tmp_path / "x") == ["broken_weights"]


def test_an_older_tokenizer_is_converted(source: Path, tmp_path: Path) -> None:
    """vocab.json and merges.txt, as GPT-2's, become tokenizer.json."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    (source / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    (source / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    wanted = ChatTokenizer.load(source)._tokenizer.encode("Bondia, coffee!").ids
    (source / "tokenizer.json").unlink()
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))
    convert(source, tmp_path / "x")
    assert ChatTokenizer.load(tmp_path / "x")._tokenizer.encode("Bondia, coffee!").ids == wanted


def test_the_child_tells_its_progress(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "afina.runs.importer", str(source), str(tmp_path / "models" / "x")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, lines[-1]) == (0, {"done": True})
    assert lines[0]["progress"] < lines[-2]["progress"] == 1.0
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert again.returncode == 1
    assert json.loads(again.stdout.splitlines()[-1])["error"]["code"] == "exists"


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_was_added_can_be_trained(family: str, tmp_path: Path) -> None:
    from tests.invariant.common import job, losses, run

    convert(tiny.build_model(tmp_path / "source", family), tmp_path / "model")
    found = losses(run(job(tmp_path / "model", tmp_path / "run", epochs=4)))
    assert found[-1] < found[0]
