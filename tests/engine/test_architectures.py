"""Families that Afina does not compute itself: examples of a row never mix, and every kind of memory of what was read gives answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from afina.core.errors import AfinaError
from afina.engine import lora
from afina.engine.batches import Item, lay_end_to_end
from afina.engine.cached import Cached
from afina.engine.model import Network
from afina.engine.speaker import greedy

SHAPE = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SCAN = {"mamba_d_state": 8, "mamba_n_groups": 1, "mamba_n_heads": 8, "mamba_d_head": 8}
MIXING: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "falcon_h1": {**SCAN, "head_dim": 8, "mamba_d_ssm": 64},
    "granitemoehybrid": {**SCAN, "layers_block_type": ["mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 32},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "use_mamba_kernels": False, "mamba_d_state": 8},
    "mamba": {"state_size": 8},
}  # fmt: skip
APART: dict[str, dict[str, Any]] = {
    "olmo3": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}
REMEMBERING: dict[str, dict[str, Any]] = {
    **MIXING,
    **APART,
    "bloom": {"n_layer": 2, "n_head": 4},
    "qwen3_5_text": {"layer_types": ["linear_attention"] * 2},  # its cache cannot do without attention
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
    "llama": {},
}


def build(family: str, more: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A model with random weights, so small that one token makes little difference to the next."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SHAPE, **more}), dtype=dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", MIXING)
def test_families_that_read_on_over_an_example_are_computed_one_by_one(family: str, dtype: torch.dtype) -> None:
    assert Network(build(family, MIXING[family], dtype)).path == "reference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", APART)
def test_families_that_keep_examples_apart_are_computed_in_rows(family: str, dtype: torch.dtype) -> None:
    assert Network(build(family, APART[family], dtype)).path == "packed"


@pytest.mark.parametrize("family", [*MIXING, *APART])
def test_a_row_has_the_loss_of_its_examples(family: str) -> None:
    network = Network(build(family, {**MIXING, **APART}[family]))
    ids = [torch.arange(3, 3 + length, dtype=torch.int32) * 7 % 90 for length in (5, 20, 11)]
    items = [Item(each, torch.arange(len(each)) > 0) for each in ids]
    with torch.no_grad():
        alone = sum(float(network.loss(lay_end_to_end([item]))) for item in items)
        together = float(network.loss(lay_end_to_end(items)))
    assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("family", REMEMBERING)
def test_answers_are_those_of_reading_everything_anew(family: str) -> None:
    model = build(family, REMEMBERING[family])
    prompts = [[5, 9, 14], [7, 3, 22, 40, 41, 8, 60], [11]]
    assert greedy(Cached(model), prompts, set(), 12) == [anew(model, prompt, 12) for prompt in prompts]


def test_a_model_that_keeps_nothing_answers_too() -> None:
    model = build("gpt2", APART["gpt2"])

    class Forgetful:
        config = model.config
        parameters = model.parameters

        def __call__(self, input_ids: torch.Tensor, **unused: Any) -> Any:
            return SimpleNamespace(logits=model(input_ids).logits)

    assert greedy(Cached(Forgetful()), [[5, 9, 14], [7]], set(), 8) == [
        anew(model, ids, 8) for ids in ([5, 9, 14], [7])
    ]


@torch.inference_mode()
def anew(model: Any, prompt: list[int], most: int) -> list[int]:
    ids = list(prompt)
    for _ in range(most):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_lora_leaves_out_what_kernels_of_state_spaces_read_by_themselves() -> None:
    given = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
    wrapped = lora.attach(build("mamba", MIXING["mamba"]), targets=["all-linear"], **given)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in wrapped.named_parameters() if ".lora_" in name}
    assert "in_proj" in adapted
    assert "out_proj" not in adapted
    with pytest.raises(AfinaError) as told:
        lora.attach(build("mamba", MIXING["mamba"]), targets=["in_proj", "out_proj"], **given)
    (problem,) = told.value.problems
    assert problem.code == "unknown_target_modules"
    assert "out_proj" in str(problem.message)
