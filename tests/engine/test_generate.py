"""Answers: with the cache as without, whole characters only, adapters merged in order, exported models the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afina.core import events
from afina.data.template import ChatTokenizer
from afina.engine import model
from afina.engine import speaker as speaking
from afina.engine.export import export
from afina.engine.generate import Generator, _choose, _Text
from tests.invariant.common import job, of_type, run


def greedy(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Without cache, by transformers' own forward."""
    network = model.load(folder, torch.float32, torch.device("cpu")).eval()
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_is_the_model_without_a_cache(family_model: Path) -> None:
    prompt = [1, 80, 81, 90, 40, 33, 50, 60] * 4  # longer than the sliding window
    generator = Generator.load(family_model, precision="float32")
    text = "".join(generator.stream(prompt, max_tokens=12))
    wanted = greedy(family_model, prompt, 12)
    stop = next((place for place, token in enumerate(wanted) if token == 2), 12)
    assert text == ChatTokenizer.load(family_model).decode(wanted[:stop])
    assert (generator.tokens, generator.stop_reason) == (stop, "stop" if stop < 12 else "length")
    assert generator.precision == "float32"
    assert generator.loss_rise == pytest.approx(0.0, abs=1e-6)


def test_several_prompts_at_once_are_each_alone(family_model: Path) -> None:
    prompts = [[1, 80, 81, 90, 40, 33, 50, 60] * 3, [1, 70], [1, 99, 98, 97, 96]]
    network = model.Network(model.load(family_model, torch.float32, torch.device("cpu")).eval())
    speaker = network.speaker()
    assert speaker is not None
    written = speaking.greedy(speaker, prompts, set(), 20)
    assert written == [greedy(family_model, prompt, 20) for prompt in prompts]
    assert speaking.greedy(speaker, prompts[:1], {written[0][3]}, 20) == [written[0][: written[0].index(written[0][3])]]


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_coarser_weights_say_what_they_cost(family_model: Path, precision: str) -> None:
    generator = Generator.load(family_model, precision=precision)
    assert generator.precision == precision
    assert generator.loss_rise is not None
    assert 0 <= generator.loss_rise < 0.01
    assert len(list(generator.stream([1, 80, 81], max_tokens=300, temperature=1.5, seed=1))) > 0


def test_the_fastest_format_that_answers_as_well(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afina.engine.generate.fastest_forms", lambda shapes, vocabulary: ["int8", "float32"])
    assert Generator.load(tiny_model).precision == "int8"
    monkeypatch.setattr("afina.engine.generate.MOST_RISE", -1.0)
    careful = Generator.load(tiny_model)
    assert careful.precision == "float32"
    prompt = [1, 80, 81, 90]
    exact = Generator.load(tiny_model, precision="float32")
    assert list(careful.stream(prompt, max_tokens=12)) == list(exact.stream(prompt, max_tokens=12))


def test_seed_temperature_and_stop(tiny_model: Path) -> None:
    generator = Generator.load(tiny_model)
    first, second, other = (
        "".join(generator.stream([1, 80, 81], max_tokens=20, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == second != other
    count = iter([False, False, True])
    list(generator.stream([1, 80, 81], max_tokens=20, temperature=1.0, seed=1, stop=lambda: next(count)))
    assert (generator.stop_reason, generator.tokens) == ("cancelled", 3)


def test_top_p_keeps_the_likeliest() -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    random = torch.Generator().manual_seed(0)
    assert {_choose(scores, 1.0, 0.6, random) for _ in range(200)} == {0, 1}
    assert {_choose(scores, 1.0, 1e-9, random) for _ in range(50)} == {0}
    assert {_choose(scores, 1.0, 1.0, random) for _ in range(500)} == {0, 1, 2, 3}
    assert _choose(scores, 0.0, 0.1, random) == 0


def test_half_a_character_never_shows(tiny_model: Path) -> None:
    chat = ChatTokenizer.load(tiny_model)
    whole = "Bondia ñ 日本 🐊 á!"
    text = _Text(chat)
    pieces = [text.add(token) for token in chat._tokenizer.encode(whole).ids]
    assert "".join(pieces) + text.rest() == whole
    assert "" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_at_the_end_is_not_lost(tiny_model: Path) -> None:
    chat = ChatTokenizer.load(tiny_model)
    ids = chat._tokenizer.encode("a🐊").ids
    text = _Text(chat)
    assert "".join(text.add(token) for token in ids[:-1]) == "a"
    assert text.rest() == "\ufffd"


def test_a_chain_of_adapters(tiny_model: Path, tmp_path: Path) -> None:
    """A LoRA on a LoRA: trained on the merged model, answered with both, exported as one."""
    first = run(job(tiny_model, tmp_path / "first", epochs=4))
    adapter = tmp_path / "first" / "adapter"
    second = run(job(tiny_model, tmp_path / "second", epochs=4, adapter_folders=[adapter]))
    before = of_type(second, events.Eval)[0].loss
    assert before == pytest.approx(of_type(first, events.Eval)[-1].loss, rel=1e-4)
    chain = [adapter, tmp_path / "second" / "adapter"]
    prompt = [1, 80, 81, 90]
    base = "".join(Generator.load(tiny_model).stream(prompt, max_tokens=16))
    both = "".join(Generator.load(tiny_model, chain).stream(prompt, max_tokens=16))
    assert base != both
    export(tiny_model, chain, tmp_path / "whole", notes={"name": "chain"})
    assert "".join(Generator.load(tmp_path / "whole").stream(prompt, max_tokens=16)) == both
    assert (tmp_path / "whole" / "tokenizer.json").is_file()
