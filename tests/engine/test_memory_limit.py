"""Memory that really runs out: the run goes on with less, says so, and learns the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from afina.core.compute import compute_environment
from tests import tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux keeps them")
ROOT = Path(__file__).resolve().parents[2]
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""What is freed goes back to the system at once, so that the limit counts what is in use."""


def build(folder: Path, hidden: int, inner: int, layers: int, dtype: torch.dtype = torch.float32) -> Path:
    """A random Llama of that size, stored in `dtype`."""
    config = AutoConfig.for_model(
        "llama", vocab_size=tiny.build_tokenizer(folder), hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few weights and many layers: what is kept for backward is nearly all of the memory."""
    return build(tmp_path_factory.mktemp("models") / "deep", 128, 256, 24)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many weights and few layers: what the optimizer keeps is nearly all of the memory."""
    return build(tmp_path_factory.mktemp("models") / "wide", 768, 2048, 2)


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights are nearly all of the memory: 81 MB on disk and in bfloat16, 163 MB in float32."""
    return build(tmp_path_factory.mktemp("models") / "heavy", 768, 2048, 6, torch.bfloat16)


def train(
    model: Path, folder: Path, megabytes: int, length: int, batch: int, rows: int, *more: str,
    environment: dict[str, str] = GIVEN_BACK,
) -> list[dict[str, Any]]:  # fmt: skip
    given = [str(each) for each in (model, folder, megabytes, length, batch, rows)]
    command = [sys.executable, "-m", "tests.engine.limited", *given, *more]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def losses(said: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in said if event["type"] in ("step", "eval")]


def retries(said: list[dict[str, Any]]) -> list[str]:
    return [event["message"]["template"] for event in said if event["type"] == "retry"]


def test_smaller_pieces(deep: Path, tmp_path: Path) -> None:
    free = train(deep, tmp_path / "free", 0, 100, 16, 32)
    tight = train(deep, tmp_path / "tight", 180, 100, 16, 32)
    assert not retries(free)
    assert retries(tight)
    assert all("smaller pieces" in text for text in retries(tight))
    assert tight[-1]["type"] == "finished"
    assert losses(tight) == pytest.approx(losses(free), abs=1e-5)


def test_activations_computed_again(deep: Path, tmp_path: Path) -> None:
    """One example a step, as long as the row: nothing can be made smaller."""
    free = train(deep, tmp_path / "free", 0, 1600, 1, 3)
    tight = train(deep, tmp_path / "tight", 140, 1600, 1, 3)
    assert ["computed again" in text for text in retries(tight)] == [True]
    assert tight[-1]["type"] == "finished"
    assert losses(tight) == pytest.approx(losses(free), abs=1e-5)


def test_what_cannot_fit_fails_by_name(deep: Path, tmp_path: Path) -> None:
    tight = train(deep, tmp_path / "tight", 70, 1600, 1, 3)
    assert (tight[-1]["type"], tight[-1]["code"]) == ("error", "out_of_memory")


def test_under_the_worker_s_own_allocator(deep: Path, tmp_path: Path) -> None:
    """It keeps what is freed, so the limit is on what is mapped, and there before anything is computed. What else is
    mapped differs by some megabytes from start to start: the largest limit that is felt counts."""
    environment = compute_environment(1)
    free = train(deep, tmp_path / "free", 0, 100, 16, 32, environment=environment)
    for megabytes in (174, 168, 162):
        folder = tmp_path / str(megabytes)
        tight = train(deep, folder, megabytes, 100, 16, 32, "loading_model", "addresses", environment=environment)
        if retries(tight):
            break
    assert not retries(free)
    assert retries(tight)
    assert tight[-1]["type"] == "finished"
    assert losses(tight) == pytest.approx(losses(free), abs=1e-5)


def test_the_optimizer_s_memory_is_asked_for_before_the_first_step(wide: Path, tmp_path: Path) -> None:
    """Weights and gradients fit and the two moments do not: no step is begun that cannot be ended."""
    tight = train(wide, tmp_path / "tight", 150, 20, 1, 3, "loading_model", "data", '{"method": "full"}')
    assert (tight[-1]["type"], tight[-1]["code"]) == ("error", "out_of_memory")
    assert not {"preflight", "step"} & {event["type"] for event in tight}
    roomy = train(wide, tmp_path / "roomy", 600, 20, 1, 3, "loading_model", "data", '{"method": "full"}')
    assert roomy[-1]["type"] == "finished"


def test_sample_answers_that_do_not_fit_are_left_out(deep: Path, tmp_path: Path) -> None:
    long = json.dumps({"sample_prompts": [f"{number} " * 500 for number in range(10)]})
    tight = train(deep, tmp_path / "tight", 30, 20, 1, 3, "sampling", "data", long)
    assert not [event for event in tight if event["type"] in ("sample", "error")]
    assert [event["code"] for event in tight if event["type"] == "warning"][-3:] == ["no_sample"] * 3
    assert [event["step"] for event in tight if event["type"] == "step"] == [1, 2, 3]
    assert tight[-1]["type"] == "finished"


def test_weights_that_do_not_fit_in_float32_are_loaded_in_bfloat16(heavy: Path, tmp_path: Path) -> None:
    tight = train(heavy, tmp_path / "tight", 230, 20, 1, 3, "loading_model", "data", '{"precision": "auto"}')
    assert "bfloat16_for_memory" in [event.get("code") for event in tight]
    assert next(event["precision"] for event in tight if event["type"] == "preflight") == "bfloat16"
    assert tight[-1]["type"] == "finished"


@pytest.mark.parametrize(
    ("megabytes", "what", "settings"),
    [
        (230, "data", '{"precision": "float32"}'),
        (90, "data", '{"precision": "auto"}'),
        (90, "addresses", "{}"),
        (20, "data", "{}"),
    ],
)
def test_weights_that_do_not_fit_fail_by_name(
    heavy: Path, tmp_path: Path, megabytes: int, what: str, settings: str
) -> None:
    """Whether it is the allocator that says so, the mapping of the file, or a thread that cannot start."""
    tight = train(heavy, tmp_path / "tight", megabytes, 20, 1, 3, "loading_model", what, settings)
    assert (tight[-1]["type"], tight[-1]["code"]) == ("error", "out_of_memory")
    precision, needed = ("bfloat16", 81) if "auto" in settings else ("float32", 163)
    assert f"“heavy”: its weights alone take {needed} MB in {precision}, and " in tight[-1]["message"]
    there = int(tight[-1]["message"].split(" and ")[-1].split()[0])
    assert megabytes - 40 < there <= megabytes
