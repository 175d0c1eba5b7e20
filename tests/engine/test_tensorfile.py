"""Files of tensors: what is written is what the library reads, and it takes no memory to write them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from afina.data.template import ChatTokenizer
from afina.engine import output, tensorfile
from tests import tiny

SAVED_WITHIN_A_LIMIT = """
import resource, sys
from pathlib import Path
import torch
from afina.engine import tensorfile
from tests.engine.limited import limit
tensors = {str(number): torch.full((1000, 10_000), float(number)) for number in range(5)}  # 200 MB
limit(24, "addresses")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensorfile.write(Path(sys.argv[1]), tensors, torch.bfloat16 if sys.argv[2] == "rounded" else None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_library_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "AT_ONCE", 7)
    random = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randn(5, 9, generator=random),
        "turned": torch.randn(4, 6, generator=random).t(),
        "part": torch.randn(8, 8, generator=random)[2:4, ::3],
        "coarse": torch.randn(11, generator=random).bfloat16(),
        "half": torch.randn(3, generator=random).half(),
        "double": torch.randn(3, generator=random).double(),
        "number": torch.tensor(3.5),
        "count": torch.tensor(7),
        "none": torch.empty(0, 4),
        "bytes": torch.arange(13, dtype=torch.uint8),
        "mask": torch.tensor([True, False, True]),
        "naïve “name”": torch.nn.Parameter(torch.ones(2)),
    }
    tensorfile.write(tmp_path / "a.safetensors", tensors)
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(read[name], tensor), name
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_rounded_on_the_way(tmp_path: Path) -> None:
    tensors = {"weight": torch.linspace(0, 1, 1000), "count": torch.tensor([1, 2])}
    tensorfile.write(tmp_path / "a.safetensors", tensors, torch.bfloat16)
    read = load_file(tmp_path / "a.safetensors")
    assert torch.equal(read["weight"], tensors["weight"].bfloat16())
    assert torch.equal(read["count"], tensors["count"])


def test_nothing_at_all(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "a.safetensors", {})
    assert load_file(tmp_path / "a.safetensors") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux keeps them")
@pytest.mark.parametrize("how", ["as it is", "rounded"])
def test_it_takes_no_memory(how: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVED_WITHIN_A_LIMIT, str(tmp_path / "a.safetensors"), how]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24 << 10
    read = load_file(tmp_path / "a.safetensors")
    assert [read[str(number)].unique().tolist() for number in range(5)] == [[float(number)] for number in range(5)]


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "mixtral"])
def test_a_model_is_written_as_transformers_writes_it(family: str, tmp_path: Path) -> None:
    """Names, ties and experts: the files of Mixtral have a tensor an expert, its layers in memory one for all."""
    if family == "mixtral":
        config = AutoConfig.for_model(
            "mixtral", vocab_size=tiny.build_tokenizer(tmp_path / "base"), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "base")
    else:
        tiny.build_model(tmp_path / "base", family)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    masters = {name: weight.detach() + 1.0 for name, weight in model.named_parameters() if "norm" in name}
    output.write_model(model, masters, tmp_path / "made", tmp_path / "base", ChatTokenizer.load(tmp_path / "base"), {})
    before, after = (
        load_file(tmp_path / "base" / "model.safetensors"),
        load_file(tmp_path / "made" / "model.safetensors"),
    )
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor + 1.0 if name in masters else tensor), name
    told = json.loads((tmp_path / "made" / "config.json").read_text())
    assert told["dtype"] == "float32"
    assert told["architectures"] == json.loads((tmp_path / "base" / "config.json").read_text())["architectures"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert torch.equal(again.model.norm.weight, model.model.norm.weight + 1.0)
