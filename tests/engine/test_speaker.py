"""One token after the other gives what reading the whole does: by the compiled kernels and without, in every format of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from afina.engine import model as models
from afina.engine import native
from afina.engine.decoder import Decoder
from afina.engine.native import steps
from afina.engine.speaker import Form, Speaker, Stored, stored_head

FORMS: dict[Form, float] = {"float32": 1e-4, "bfloat16": 4e-2, "int8": 4e-2}
LONG = [1 + (7 * number) % 90 for number in range(270)]  # longer than the first room of the cache, and any window


def speaking(folder: Path, form: Form, dtype: torch.dtype) -> Speaker:
    model = models.load(folder, torch.float32, torch.device("cpu")).eval()
    head = model.get_output_embeddings()
    changes = models.score_changes(model.config.get_text_config())
    return Speaker(Decoder(model), stored_head(head.weight, head.bias, form, *changes), form, dtype)


def last_scores(voice: Speaker, tokens: list[int], read: int) -> Tensor:
    scores = voice.begin([tokens[:read]])
    for token in tokens[read:]:
        scores = voice.next([token])
    return scores


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "operators"])
@pytest.mark.parametrize("form", FORMS)
def test_a_token_at_a_time(family_model: Path, form: Form, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library() is not None
    if not kernels:
        monkeypatch.setattr(native, "library", lambda: None)
        monkeypatch.setattr(steps, "library", lambda: None)
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    voice = speaking(family_model, form, dtype)
    for text in (LONG[:3], LONG):
        whole = last_scores(voice, text, len(text))
        by_token = last_scores(voice, text, max(1, len(text) - 30))
        assert (by_token - whole).norm() <= FORMS[form] * whole.norm()


@pytest.mark.parametrize("shape", [(5, 7), (33, 64), (130, 100)])
@pytest.mark.parametrize("form", FORMS)
def test_stored_weights_multiply(shape: tuple[int, int], form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    stored = Stored(weight, bias, form)
    for rows in (1, 3, steps.FEW_ROWS, steps.FEW_ROWS + 1):
        x, add = torch.randn(rows, shape[1]), torch.randn(rows, shape[0])
        wanted = x.double() @ weight.double().t() + bias.double() + add.double()
        ours, _ = stored.forward(x, add=add.clone())
        assert (ours - wanted).norm() <= {"float32": 1e-6, "bfloat16": 1e-2, "int8": 2e-2}[form] * wanted.norm()
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            patch.setattr(steps, "library", lambda: None)
            assert (stored.forward(x, add=add.clone())[0] - wanted).norm() <= 2e-2 * wanted.norm()


def test_more_threads_than_work(tiny_model: Path) -> None:
    """The same scores whatever the number of threads."""
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(last_scores(speaking(tiny_model, "int8", torch.float32), LONG[:40], 4))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
    finally:
        torch.set_num_threads(threads)
