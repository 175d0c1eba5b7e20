"""Base models of 8 and 4 bits, by bitsandbytes' kernels for processors: computed, trained, resumed, continued, merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from afina.core import quantization
from afina.core.errors import AfinaError
from afina.engine import export, lora, model
from afina.engine.batches import lay_end_to_end
from tests.invariant import common
from tests.invariant import test_packed as packed

CPU = torch.device("cpu")
BITS = ["4bit", "8bit"]


def wrapped(folder: Path, bits: str, earlier: tuple[Path, ...] = ()) -> Any:
    torch.manual_seed(3)
    base = model.load(folder, torch.float32, CPU, quantization=bits)
    made = lora.attach(base, rank=4, alpha=8, dropout=0.0, targets=["all-linear"], earlier=earlier)
    for name, weight in made.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return made


def linear_weights(network: Any) -> list[torch.Tensor]:
    return [weight for name, weight in network.named_parameters() if "_proj" in name and "lora" not in name]


@pytest.mark.parametrize("bits", BITS)
def test_packed_is_transformers_own(family_model: Path, bits: str) -> None:
    """Laid end to end, with our attention and loss: what PEFT and transformers give an example at a time."""
    reference, ours = wrapped(family_model, bits).get_base_model(), wrapped(family_model, bits).get_base_model()
    expected = packed.transformers_loss(reference, packed.items())
    expected.backward()
    network = model.Network(ours)
    assert network.path == "packed"
    assert network.backward(lay_end_to_end(packed.items()), 1.0) == pytest.approx(expected.item(), rel=1e-5)
    packed.assert_same(packed.gradients(ours), packed.gradients(reference))
    assert all("lora" in name for name in packed.gradients(ours))


@pytest.mark.parametrize(("bits", "most"), [("4bit", 0.6), ("8bit", 1.1)])
def test_weights_are_small_and_near(tiny_model: Path, bits: str, most: float) -> None:
    whole, small = model.load(tiny_model, torch.float32, CPU), model.load(tiny_model, torch.float32, CPU, (), bits)
    numbers = sum(weight.numel() for weight in linear_weights(whole))
    assert sum(weight.nbytes for weight in linear_weights(small)) <= most * numbers
    ids = torch.arange(3, 40)[None]
    one, other = whole(input_ids=ids).logits, small(input_ids=ids).logits
    assert 0 < float((one - other).norm() / one.norm()) < 0.2
    assert torch.equal(small.lm_head.weight, whole.lm_head.weight)


@pytest.mark.parametrize("bits", BITS)
def test_a_run_from_start_to_export(tiny_model: Path, tmp_path: Path, bits: str) -> None:
    told = common.run(common.job(tiny_model, tmp_path / "run", epochs=8, quantization=bits))
    plan = next(event for event in told if event.type == "preflight")
    plain = common.run(common.job(tiny_model, tmp_path / "plain", max_steps=1))
    whole = next(event for event in plain if event.type == "preflight")
    assert plan.path == "packed"
    assert (plan.parameters, plan.trainable_parameters) == (whole.parameters, whole.trainable_parameters)
    losses = [event.loss for event in told if event.type == "step"]
    assert losses[-1] < losses[0] - 0.2
    assert sum(len(event.answers) for event in told if event.type == "sample") == 9
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "afina.json").read_text())["trained_beside"] == {"quantization": bits}
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert (settings["r"], settings["base_model_name_or_path"]) == (16, str(tiny_model))

    export.export(tiny_model, [adapter], tmp_path / "merged")
    base, merged = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = base[f"{name}.weight"] + b @ a * (settings["lora_alpha"] / settings["r"])
    assert torch.allclose(merged[f"{name}.weight"], expected, atol=1e-6), (
        "merged into the base as it is, of no fewer bits"
    )


def test_resumed_as_if_never_stopped(tiny_model: Path, tmp_path: Path) -> None:
    asked = iter([None] * 3 + ["last"])
    common.run(common.job(tiny_model, tmp_path / "cut", quantization="4bit", stop=lambda: next(asked)))
    rest = common.run(common.job(tiny_model, tmp_path / "cut", quantization="4bit"))
    whole = common.run(common.job(tiny_model, tmp_path / "whole", quantization="4bit"))
    after = [event.loss for event in rest if event.type == "step"]
    assert after == [event.loss for event in whole if event.type == "step"][-len(after) :]


@pytest.mark.parametrize("bits", BITS)
def test_a_run_from_an_earlier_one(tiny_model: Path, tmp_path: Path, bits: str) -> None:
    """The earlier adapter stands beside the weights, counts in the loss, and is neither trained nor saved again."""
    first = common.run(common.job(tiny_model, tmp_path / "first", epochs=4, quantization=bits))
    adapter = tmp_path / "first" / "adapter"
    fresh = wrapped(tiny_model, bits, earlier=(adapter,))
    trained = [name for name, weight in fresh.named_parameters() if weight.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)
    row = lay_end_to_end(packed.items())
    assert model.Network(fresh.get_base_model()).backward(row, 1.0) == pytest.approx(
        packed.transformers_loss(fresh.get_base_model(), packed.items()).item(), rel=1e-5
    )
    second = common.run(common.job(tiny_model, tmp_path / "second", quantization=bits, adapter_folders=(adapter,)))
    last = [event.loss for event in first if event.type == "eval"][-1]
    assert next(event.loss for event in second if event.type == "eval") == pytest.approx(last, rel=1e-3)
    saved = load_file(tmp_path / "second" / "adapter" / "adapter_model.safetensors")
    assert len(saved) == len(load_file(adapter / "adapter_model.safetensors"))


def test_without_the_package_it_says_how_to_get_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(AfinaError) as caught:
        common.run(common.job(tiny_model, tmp_path / "run", quantization="4bit"))
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.value) == ("bitsandbytes_missing", "quantization", "4bit")
    assert 'pip install "bitsandbytes' in str(problem.remedy)
    assert quantization.missing("none") is None


def test_a_broken_earlier_adapter_has_a_name(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(AfinaError) as caught:
        wrapped(tiny_model, "4bit", earlier=(tmp_path,))
    assert caught.value.problems[0].code == "adapter_mismatch"
