"""Answering speed at batch 1 beside transformers' `generate`, alternating in one process.

    .venv/bin/python bench/generate_speed.py [--rounds 3] [--tokens 64] [--json]

Ours answers in the format that chat takes by default here; what that costs on a held-out text is printed beside it.
transformers runs in the better of float32 and bfloat16. Seconds count the reading of the prompt too. With `--batch N` ours
also answers N prompts at once, as evaluation does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import machine
from results import bar_chart, save_chart
from train_speed import starter

from afina.data.examples import Turn
from afina.data.template import ChatTokenizer

PROMPT = "Write a long story about a fisherman from Ataúro and his boat."


def main() -> None:
    """Print the figures; with --json one line of JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a model (default: the starter model)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--batch", type=int, default=8, help="prompts at once, for the evaluation figure")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked, asked.model or starter())
    bars = [
        (f"afina {found['precision']}", found["tokens_per_second"]),
        *((f"transformers {name}", speed) for name, speed in found["peers"].items()),
    ]
    save_chart("generate_speed", found, bar_chart("Tokens a second at batch 1", bars))
    note = sys.stderr if asked.json else sys.stdout
    for name, speed in bars:
        print(f"{name:28}{speed:8.1f} tokens/s", file=note)
    rise = 100 * found["loss_rise"]
    print(f"{found['ratio']:.2f} x; loss {rise:+.2f} % against float32; {found['note']}", file=note)
    print(f"{asked.batch} prompts at once: {found['batch_tokens_per_second']:.1f} tokens/s", file=note)
    if asked.json:
        print(json.dumps(found))


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both in turn, `rounds` times after one that does not count; medians."""
    import torch
    from transformers import AutoModelForCausalLM

    from afina.engine import model as models
    from afina.engine.generate import Generator
    from afina.engine.speaker import greedy

    torch.set_num_threads(machine.cores())
    chat = ChatTokenizer.load(folder)
    prompt = chat.prompt([Turn("user", PROMPT)])
    ours = Generator.load(folder, threads=machine.cores())
    peers = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, name)).eval()
        for name in ("float32", "bfloat16")
    }
    network = models.Network(models.load(folder, torch.float32, torch.device("cpu")).eval())
    speaker = network.speaker()
    assert speaker is not None
    ids = torch.tensor([prompt])

    def answer_ours() -> int:
        for _ in ours.stream(prompt, max_tokens=asked.tokens):
            pass
        return ours.tokens

    def answer(peer: Any) -> int:
        written = peer.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=asked.tokens, pad_token_id=0
        )
        return int(written.shape[1] - ids.shape[1])

    speeds: dict[str, list[float]] = {"afina": [], **{name: [] for name in peers}}
    for number in range(asked.rounds + 1):
        for name in speeds:
            begin = time.perf_counter()
            tokens = answer_ours() if name == "afina" else answer(peers[name])
            if number:
                speeds[name].append(tokens / (time.perf_counter() - begin))
    middle = {name: statistics.median(each) for name, each in speeds.items()}
    begin = time.perf_counter()
    together = greedy(speaker, [prompt] * asked.batch, set(), asked.tokens)
    batch = sum(len(each) for each in together) / (time.perf_counter() - begin)
    better = max(peers, key=lambda name: middle[name])
    wanted = (
        peers["float32"]
        .generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=asked.tokens, pad_token_id=0
        )[0, ids.shape[1] :]
        .tolist()
    )
    same = greedy(speaker, [prompt], set(), len(wanted))[0] == wanted
    return {
        "ratio": round(middle["afina"] / middle[better], 3),
        "tokens_per_second": round(middle["afina"], 2),
        "peer_tokens_per_second": round(middle[better], 2),
        "peer": f"transformers generate, {better}",
        "peers": {name: round(middle[name], 2) for name in peers},
        "precision": ours.precision,
        "loss_rise": round(ours.loss_rise or 0.0, 5),
        "batch_tokens_per_second": round(batch, 1),
        "float32_equals_transformers": same,
        "note": "float32 answers are transformers' token for token"
        if same
        else "float32 answers DIFFER from transformers'",
        "machine": machine.facts(),
    }


if __name__ == "__main__":
    main()
