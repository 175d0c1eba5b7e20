"""Training speed with shared prefixes computed once, beside the same steps without, in one process, in turn.

    .venv/bin/python bench/prefix_speed.py [--prompts 0,50,200] [--rounds 6] [--precision auto] [--json]

LoRA steps of the engine's parts over a dataset, with a system prompt of so many tokens before every example (0: only what
the model's own template puts there). Both ways compute the gradients of the same examples with the same weights, one after
the other, and change places in every round; then the optimizer takes its step. Tokens a second count the input tokens of all
examples, whether they were computed once or often; a round that does not count goes before. The ratio is the median of
the rounds', for a neighbour's work may fall on one turn alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
from results import bar_chart, save_chart
from train_speed import MAX_LENGTH, ROOT, starter

from afina.data.examples import Example, Turn
from afina.data.readers import read
from afina.data.template import ChatTokenizer

SENTENCE = (
    "You are a careful assistant of a small school by the sea who answers in plain words and never invents facts. "
)


def main() -> None:
    """Measure every prompt and print a table; with --json one line of JSON at the end."""
    if len(sys.argv) == 3 and sys.argv[1] == "--point":
        print(json.dumps(point(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a base model (default: the starter model)")
    parser.add_argument("--dataset", type=Path, help="a file afina reads without errors (default: Alpaca sample)")
    parser.add_argument("--prompts", default="0,50,200", help="tokens of the system prompt, several with commas")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--examples", type=int, default=10, help="examples a step")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    note = sys.stderr if asked.json else sys.stdout
    shared = ROOT.parent / "shared" / "data" / "alpaca_en_demo.json"
    dataset = asked.dataset or (shared if shared.is_file() else ROOT / "examples" / "timor-leste.txt")
    model = asked.model or starter()
    found: dict[str, Any] = {"machine": machine.facts(), "model": model.name, "dataset": dataset.name, "prompts": {}}
    bars = []
    for tokens in (int(part) for part in asked.prompts.split(",")):
        settings = {"model": str(model), "dataset": str(dataset), "prompt": tokens, "rounds": asked.rounds,
                    "examples": asked.examples, "precision": asked.precision}  # fmt: skip
        made = machine.run_point(Path(__file__), settings)
        found["prompts"][tokens] = made
        print(
            f"prompt of {tokens:>4} tokens, {made['precision']}: {made['off']:6.0f} tokens/s, shared {made['on']:6.0f}: "
            f"{made['ratio']:.2f} times ({made['saving']:.1%} fewer tokens; loss differs by {made['loss_difference']:.1e})",
            file=note,
        )
        bars += [(f"{tokens}, each by itself", made["off"]), (f"afina {tokens}, shared", made["on"])]
    name = "prefix_speed" if asked.precision == "auto" else f"prefix_speed_{asked.precision}"
    save_chart(name, found, bar_chart("Tokens a second, by the length of the system prompt", bars))
    if asked.json:
        print(json.dumps(found))


def prompt_of(chat: ChatTokenizer, tokens: int) -> str | None:
    """A system prompt of at least so many tokens; None for 0."""
    question, count = [Turn("user", "?")], 0
    text = ""
    while count < tokens:
        text += SENTENCE
        count = len(chat.prompt(question, text)) - len(chat.prompt(question, "."))
    return text.strip() or None


def point(settings: dict[str, Any]) -> dict[str, Any]:
    """In the child: the same steps both ways."""
    import torch

    from afina.engine import device, lora, memory, model, optim, prefixes
    from afina.engine.batches import Item, Order, Part, Row, rows_of

    torch.set_num_threads(machine.cores())
    folder, cpu = Path(settings["model"]), torch.device("cpu")
    chat = ChatTokenizer.load(folder)
    system = prompt_of(chat, settings["prompt"])
    examples = [item for item in read(Path(settings["dataset"])) if isinstance(item, Example)]
    encoded = [
        each
        for example in examples
        for each in chat.encode_all(example, max_length=MAX_LENGTH, system_prompt=system)
        if each.learned
    ]
    items = [Item.of(each) for each in encoded]
    config = model.text_config(folder)
    fastest, _ = device.fastest_dtype(cpu, model.shapes(config), 1024)
    dtype = fastest if settings["precision"] == "auto" else device.DTYPES[settings["precision"]]
    plain = model.load(folder, dtype, cpu)
    torch.manual_seed(1)
    wrapped = lora.attach(plain, rank=16, alpha=32, dropout=0.0, targets=["all-linear"])
    network = model.Network(wrapped.get_base_model())
    trained = optim.Trained((name, each) for name, each in plain.named_parameters() if each.requires_grad)
    optimizer = optim.build("adamw", trained, 2e-4, 0.0)
    order = Order([Part(len(items))], settings["examples"], 42)
    ways: dict[str, Callable[[Sequence[Item], int], Iterator[Row]]] = {"off": rows_of, "on": prefixes.rows_of}
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    losses: dict[str, list[float]] = {"off": [], "on": []}
    tokens = []
    for number in range(settings["rounds"] + 1):
        step = [items[index] for index in order.step(number)]
        learned = sum(item.learned for item in step)
        tokens.append(sum(len(item) for item in step))
        for way in sorted(ways, reverse=number % 2 == 0):
            trained.clear()
            begin = time.perf_counter()
            loss = sum(network.backward(row, 1.0 / learned) for row in ways[way](step, memory.MOST_TOKENS["cpu"]))
            seconds[way].append(time.perf_counter() - begin)
            losses[way].append(loss / learned)
        optim.step(optimizer, trained)
        network.weights_changed()
    whole = sum(tokens[1:])
    ratios = [one / other for one, other in zip(seconds["off"][1:], seconds["on"][1:], strict=True)]
    epoch = ([items[index] for index in order.step(number)] for number in range(order.steps_per_epoch))
    return {
        "precision": str(dtype)[6:],
        "off": whole / sum(seconds["off"][1:]),
        "on": whole / sum(seconds["on"][1:]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "saving": prefixes.saving(epoch, memory.MOST_TOKENS["cpu"]),
        "tokens_a_step": statistics.mean(tokens[1:]),
        "loss_difference": max(abs(a - b) / b for a, b in zip(losses["on"], losses["off"], strict=True)),
    }


if __name__ == "__main__":
    main()
