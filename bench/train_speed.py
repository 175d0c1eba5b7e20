"""Training speed beside TRL or LLaMA-Factory: real tokens a second, peak memory, loss and MFU, in one alternating run.

    .venv/bin/python bench/train_speed.py [--peer trl|llamafactory|none] [--rounds 3] [--steps 30] [--json]

Same model, examples in the same order, LoRA settings, examples a step, precision and threads. Every system is a process
of its own; they are loaded together and take turns, a few steps each, so that a drift of the machine meets both. TRL runs
in the fastest of several configurations, found by trying them first. Tokens are real input tokens (no padding), seconds
those of the training steps after the warm-up. MFU is the useful work a second (`machine.flops`) over the rate of a 2048³
matrix product measured between the turns, in the better of float32 and bfloat16. Peers live in environments of their own
(`--peer-env DIR`, made when it is missing).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine

from afina.core.cache import cache_folder
from afina.core.compute import compute_environment
from afina.core.parsing import parse_spec
from afina.core.paths import find_home
from afina.data.examples import Example
from afina.data.readers import read
from afina.data.template import ChatTokenizer
from afina.engine.batches import Item, Order, Part

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MAX_LENGTH = 1024
PINS = {
    "trl": ["torch==2.13.0", "trl==1.16.0", "transformers==5.24.0", "peft==0.21.0", "datasets"],
    "llamafactory": [
        "torch==2.13.0", "transformers==5.6.0", "peft==0.18.1", "trl==0.24.0", "accelerate==1.11.0", "datasets<=4.0.0",
        "omegaconf", "tyro<0.9", "fire", "einops", "sentencepiece", "tiktoken", "scipy", "matplotlib", "pandas", "fastapi",
        "sse-starlette", "uvicorn", "protobuf", "pyyaml", "hf-transfer", "av<=16", "torchdata<=0.11",
    ],
}  # fmt: skip
ALONE = {"llamafactory": ["llamafactory==0.9.5"]}
"""Installed without its dependencies: it asks for torchvision and torchaudio, which are not used here."""


@dataclass
class System:
    """A process under measurement and what it has said."""

    name: str
    process: subprocess.Popen[str]
    steps: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    peak_memory: int = 0

    def hear(self) -> dict[str, Any]:
        """The next thing it says. Raises RuntimeError when it has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")
        said: dict[str, Any] = json.loads(line)
        if "plan" in said:
            self.plan = said
        elif "step" in said:
            self.steps.append(said)
        elif "end" in said:
            self.peak_memory = said["peak_memory"]
        return said

    def until(self, what: str) -> None:
        """Listen until it says `what`."""
        while what not in self.hear():
            pass

    def take(self, count: int) -> None:
        """Let it take `count` steps."""
        self.tell(count)
        wanted = len(self.steps) + count
        while len(self.steps) < wanted:
            self.hear()

    def tell(self, number: int) -> None:
        """Say how many steps to take; 0 ends it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Let it say its peak of memory, and end."""
        self.tell(0)
        self.until("end")
        self.process.wait()

    def rate(self, skip: int) -> float:
        """Real tokens a second of the steps after the first `skip`."""
        counted = self.steps[skip:]
        return sum(step["tokens"] for step in counted) / sum(step["seconds"] for step in counted)


def main() -> None:
    """Run the benchmark; prints a table, or with --json the table on the error output and one line of JSON."""
    asked = arguments()
    note = (lambda *words: print(*words, file=sys.stderr)) if asked.json else print
    bench = Bench(asked, note)
    found: dict[str, Any] = {"machine": machine.facts(), "peer": asked.peer, "settings": bench.told()}
    for method in asked.methods.split(","):
        found.update(bench.measure(method))
    note(table(found, asked))
    keep(found)
    if asked.json:
        print(json.dumps(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a base model (default: the starter model)")
    parser.add_argument(
        "--dataset", type=Path, help="a file afina reads without errors (default: shared Alpaca sample)"
    )
    parser.add_argument("--peer", choices=["trl", "llamafactory", "none"], default="trl")
    parser.add_argument("--peer-env", type=Path, help="virtual environment of the peer; made there when it is missing")
    parser.add_argument("--methods", default="lora,full", help="lora, full or both")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each system")
    parser.add_argument("--steps", type=int, default=30, help="steps of each system, over all rounds")
    parser.add_argument("--warm-up", type=int, default=2, help="first steps whose time does not count")
    parser.add_argument("--examples", type=int, default=10, help="examples a step")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args()


class Bench:
    """What all systems share: model, examples in order, threads."""

    def __init__(self, asked: argparse.Namespace, note: Any) -> None:
        import torch

        self.asked, self.note = asked, note
        self.threads = machine.cores()
        torch.set_num_threads(self.threads)
        self.model = asked.model or starter()
        shared = ROOT.parent / "shared" / "data" / "alpaca_en_demo.json"
        self.dataset = asked.dataset or (shared if shared.is_file() else ROOT / "examples" / "timor-leste.txt")
        self.folder = Path(tempfile.mkdtemp(prefix="afina-bench-"))
        self.python = peer_python(asked, note) if asked.peer != "none" else None
        self.tokens = self.folder / "tokens.json"
        self._write_tokens()

    def told(self) -> dict[str, Any]:
        """What the figures were taken with."""
        names = ("rounds", "steps", "warm_up", "examples", "rank", "precision")
        return {"model": self.model.name, "dataset": self.dataset.name, "threads": self.threads,
                **{name: getattr(self.asked, name) for name in names}}  # fmt: skip

    def spec(self, method: str) -> dict[str, Any]:
        """The settings of our own run: constant rate, no warmup, nothing held back, one checkpoint at the end."""
        return {
            "model": str(self.model), "dataset": self.dataset.name, "method": method, "lora_rank": self.asked.rank,
            "lora_alpha": 2 * self.asked.rank, "batch_size": self.asked.examples, "max_steps": self.asked.steps + 1,
            "epochs": 1000, "validation_share": 0, "save_every": self.asked.steps, "schedule": "constant",
            "warmup_steps": 0, "max_length": MAX_LENGTH, "precision": self.asked.precision, "threads": self.threads,
            "learning_rate": 2e-4 if method == "lora" else 2e-5,
        }  # fmt: skip

    def _write_tokens(self) -> None:
        """The examples of every step in our order, as token ids and labels, for peers that take them."""
        chat = ChatTokenizer.load(self.model)
        spec = parse_spec(self.spec("lora"))
        examples = [item for item in read(self.dataset) if isinstance(item, Example)]
        encoded = [each for example in examples for each in chat.encode_all(example, max_length=MAX_LENGTH)]
        items = [each for each in encoded if each.learned]
        order = Order([Part(len(items))], spec.examples_per_step, spec.seed)
        rows = []
        for step in range(self.asked.steps):
            for index in order.step(step):
                item = items[index]
                labels = [token if learned else -100 for token, learned in zip(item.ids, item.mask, strict=True)]
                rows.append({"input_ids": item.ids, "labels": labels})
        self.tokens.write_text(json.dumps(rows))
        assert Item.of(items[0]).learned == items[0].learned

    # ------------------------------------------------------------------ one method

    def measure(self, method: str) -> dict[str, Any]:
        """Ours and the peer's figures for "lora" or "full", by name with the method at the end."""
        ours = self.ours(method)
        ours.until("ready")
        precision = ours.plan["precision"]
        self.note(f"{method}: afina computes in {precision} ({ours.plan['path']} path)")
        peers = self.peers(method, precision)
        per_round = max(1, self.asked.steps // self.asked.rounds)
        products = machine.Products()
        for number in range(self.asked.rounds):
            for _ in range(per_round):
                products.time()
                ours.take(1)
            for system in peers:
                system.take(per_round)
            for system in (ours, *peers):
                done = system.steps[-per_round:]
                speed = sum(step["tokens"] for step in done) / sum(step["seconds"] for step in done)
                self.note(f"  round {number + 1}: {system.name} {speed:.0f} tokens/s, loss {done[-1]['loss']:.4f}")
        for system in (ours, *peers):
            system.end()
        return self.figures(method, ours, peers, products)

    def figures(self, method: str, ours: System, peers: list[System], products: machine.Products) -> dict[str, Any]:
        """The numbers of a method's run."""
        skip = self.asked.warm_up
        mine = ours.rate(skip)
        config = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        computed = 1 - ours.plan["shared"]  # what shared prefixes save is read, but it is no work done
        work = machine.flops(config, computed, ours.plan["learned"] / computed, ours.plan["length"], method) * mine
        rate, fastest = products.rate(products.better), products.fastest(products.better)
        own = products.rate(ours.plan["precision"])
        found: dict[str, Any] = {
            f"tokens_per_second_{method}": round(mine, 1),
            f"precision_{method}": ours.plan["precision"],
            f"shared_prefixes_{method}": ours.plan["shared"],
            f"mfu_{method}": round(work / rate, 4),
            f"mfu_of_precision_{method}": round(work / own, 4) if own else None,
            f"mfu_of_fastest_{method}": round(work / fastest, 4),
            f"machine_gflops_{method}": round(rate / 1e9, 1),
            f"machine_gflops_fastest_{method}": round(fastest / 1e9, 1),
            f"peak_memory_{method}": ours.peak_memory,
            f"loss_{method}": round(tail(ours), 5),
            f"losses_{method}": [step["loss"] for step in ours.steps],
        }
        if peers:
            best = max(peers, key=lambda peer: peer.rate(skip))
            same = next((peer for peer in peers if "packed" not in peer.name), best)
            found |= {
                f"ratio_{method}": round(mine / best.rate(skip), 3),
                f"peer_{method}": best.name,
                f"peer_tokens_per_second_{method}": round(best.rate(skip), 1),
                f"peer_peak_memory_{method}": best.peak_memory,
                f"memory_ratio_{method}": round(ours.peak_memory / best.peak_memory, 3),
                f"peer_loss_{method}": round(tail(same), 5),
                f"loss_difference_{method}": round(abs(tail(ours) - tail(same)) / tail(same), 5),
                f"peer_losses_{method}": [step["loss"] for step in same.steps],
            }
        return found

    def ours(self, method: str) -> System:
        """Afina, with the environment its workers get."""
        folder = self.folder / f"afina-{method}"
        folder.mkdir()
        settings = {
            "dataset": str(self.dataset),
            "model": str(self.model),
            "folder": str(folder),
            "spec": self.spec(method),
        }
        environment = compute_environment(self.threads)
        environment["PYTHONPATH"] = str(ROOT / "src")
        return self.start("afina", [sys.executable], "ours.py", settings, environment)

    # ------------------------------------------------------------------ the peer

    def peers(self, method: str, precision: str) -> list[System]:
        """The peer, loaded and waiting: TRL in its fastest padded configuration, and packed where that is not far behind."""
        if self.python is None:
            return []
        if self.asked.peer == "llamafactory":
            settings = {"batch_size": 5 if self.asked.examples % 5 == 0 else 1, "autocast": precision == "bfloat16"}
            system = self.peer("llamafactory", method, settings)
            system.until("ready")
            return [system]
        speeds: dict[str, float] = {}
        settings_of = trl_settings(method, precision, self.asked.examples)
        for name, settings in settings_of.items():
            system = self.peer(name, method, {**settings, "steps": 3})
            try:
                system.until("ready")
                system.take(3)
                speeds[name] = system.rate(1)
                self.note(f"  trying {name}: {speeds[name]:.0f} tokens/s")
                system.end()
            except RuntimeError as error:
                self.note(f"  trying {name}: {error}")
            finally:
                system.process.kill()
        padded = max((name for name in speeds if "packed" not in name), key=lambda name: speeds[name])
        packed = [name for name in speeds if "packed" in name and speeds[name] > 0.85 * speeds[padded]]
        chosen = [padded, *sorted(packed, key=lambda name: -speeds[name])[:1]]
        systems = [self.peer(name, method, settings_of[name]) for name in chosen]
        for system in systems:
            system.until("ready")
        return systems

    def peer(self, name: str, method: str, settings: dict[str, Any]) -> System:
        """Start the peer with these settings."""
        folder = self.folder / f"{name.replace(' ', '-')}-{method}-{time.monotonic_ns()}"
        folder.mkdir()
        steps = settings.get("steps", self.asked.steps)
        whole = {
            "tokens": str(self.tokens), "dataset": str(self.dataset), "model": str(self.model), "folder": str(folder),
            "method": method, "rank": self.asked.rank, "threads": self.threads, "max_length": MAX_LENGTH,
            "learning_rate": self.spec(method)["learning_rate"],
            **settings, "steps": steps + 1, "accumulation": self.asked.examples // settings["batch_size"],
        }  # fmt: skip
        if settings.get("packing"):
            whole["accumulation"] = 1
        script = "llamafactory_sft.py" if self.asked.peer == "llamafactory" else "trl_sft.py"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment.pop("PYTHONPATH", None)
        return self.start(name, [str(self.python)], script, whole, environment)

    def start(self, name: str, python: list[str], script: str, settings: dict[str, Any], environment: Any) -> System:
        file = self.folder / f"settings-{time.monotonic_ns()}.json"
        file.write_text(json.dumps(settings))
        log = (self.folder / f"{file.stem}.log").open("w")
        process = subprocess.Popen(
            [*python, str(HERE / "systems" / script), str(file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        )  # fmt: skip
        return System(name, process)


def trl_settings(method: str, precision: str, examples: int) -> dict[str, dict[str, Any]]:
    """TRL's configurations that could be its fastest: padded batches, examples one by one, packed; in bfloat16 by
    autocast over float32 weights, and for LoRA over a base in bfloat16 too."""
    layouts = {
        "trl padded": {"batch_size": examples, "packing": False},
        "trl one by one": {"batch_size": 1, "packing": False},
        "trl packed": {"batch_size": 2, "packing": True},
    }
    if precision == "float32":
        return {name: {**layout, "dtype": "float32", "autocast": False} for name, layout in layouts.items()}
    found = {}
    for name, layout in layouts.items():
        found[f"{name} autocast"] = {**layout, "dtype": "float32", "autocast": True}
        if method == "lora":
            found[f"{name} bfloat16"] = {**layout, "dtype": "bfloat16", "autocast": True}
    return found


def tail(system: System) -> float:
    """Mean loss of the last third of its steps."""
    last = system.steps[-max(1, len(system.steps) // 3) :]
    return statistics.fmean(step["loss"] for step in last)


def starter() -> Path:
    """The starter model in the user's home, prepared when it is missing."""
    home = find_home()
    folder = home.models / "SmolLM2-135M-Instruct"
    if not folder.is_dir():
        subprocess.run([sys.executable, "-m", "afina.cli", "models", "add", "starter"], check=True, stdout=sys.stderr)
    return folder


def peer_python(asked: argparse.Namespace, note: Any) -> Path:
    """The Python of the peer's environment, made with the pinned packages when it is missing."""
    folder = asked.peer_env or cache_folder() / "peers" / asked.peer
    python: Path = folder / "bin" / "python"
    if not python.exists():
        note(f"making an environment for {asked.peer} in {folder} (a few minutes)")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *PINS[asked.peer]], check=True, stdout=sys.stderr)
        if asked.peer in ALONE:
            subprocess.run([*pip, "--no-deps", *ALONE[asked.peer]], check=True, stdout=sys.stderr)
    return python


def table(found: dict[str, Any], asked: argparse.Namespace) -> str:
    """The figures as people read them."""
    lines = [f"{'':24}{'tokens/s':>10}{'peak GB':>10}{'loss':>10}{'MFU':>8}"]
    for method in asked.methods.split(","):
        own = f"{found[f'tokens_per_second_{method}']:>10.0f}{found[f'peak_memory_{method}'] / 1e9:>10.2f}"
        lines.append(f"{'afina ' + method:24}{own}{found[f'loss_{method}']:>10.4f}{found[f'mfu_{method}']:>8.2f}")
        if f"ratio_{method}" in found:
            peer = (
                f"{found[f'peer_tokens_per_second_{method}']:>10.0f}{found[f'peer_peak_memory_{method}'] / 1e9:>10.2f}"
            )
            lines.append(f"{found[f'peer_{method}']:24}{peer}{found[f'peer_loss_{method}']:>10.4f}")
            ratio = f"{found[f'ratio_{method}']:.2f} x the speed, {found[f'memory_ratio_{method}']:.2f} x the memory"
            lines.append(f"  {ratio}, loss within {100 * found[f'loss_difference_{method}']:.2f} %")
    return "\n".join(lines)


def keep(found: dict[str, Any]) -> None:
    """Raw figures and a plot under bench/results; one method's under its name."""
    from results import save

    peer = [] if found["peer"] == "trl" else [found["peer"]]
    methods = [method for method in ("lora", "full") if f"tokens_per_second_{method}" in found]
    save("_".join(["train_speed", *(methods if len(methods) == 1 else []), *peer]), found)


if __name__ == "__main__":
    main()
