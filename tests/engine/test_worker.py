"""The child that trains, as a real process: to the end, stopped, killed and resumed, refused, failed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from afina.actions.starting import prepare
from afina.core.files import write_json
from afina.core.paths import Home
from afina.runs.launch import BUSY, computing_lock
from afina.runs.log import EventLog

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def with_model(home: Home, tiny_model: Path) -> Home:
    shutil.copytree(tiny_model, home.models / "tiny")
    return home


def folder_of(home: Home, dataset: Path, **settings: Any) -> Path:
    shutil.copy(dataset, home.datasets / dataset.name)
    spec = {"model": "tiny", "dataset": dataset.name, "epochs": 2, "batch_size": 4, "learning_rate": 0.01, **settings}
    return prepare(home, spec).write(home)


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "afina.runs.worker", str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )


def work(folder: Path, **environment: str) -> tuple[int, str]:
    process = start(folder, **environment)
    told, _ = process.communicate(timeout=120)
    return process.returncode, told


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in EventLog(folder).all() if event["type"] == kind]


def wait_for_step(folder: Path, process: subprocess.Popen[str], step: int) -> None:
    limit = time.monotonic() + 120
    while not any(event["step"] >= step for event in events_of(folder, "step")):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_to_the_end(with_model: Home, pairs_file: Path) -> None:
    folder = folder_of(with_model, pairs_file)
    code, told = work(folder)
    assert code == 0, told
    plan, end = events_of(folder, "preflight")[0], events_of(folder, "finished")[0]
    steps = events_of(folder, "step")
    assert plan["rows"] + plan["validation_rows"] == 40
    assert [event["step"] for event in steps] == list(range(1, plan["total_steps"] + 1))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [event["when"] for event in events_of(folder, "sample")] == ["before", "during", "after"]
    assert len(events_of(folder, "sample")[0]["answers"]) == 3
    assert end["output"] == "adapter"
    assert {path.name for path in (folder / "adapter").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "afina.json",
    }  # fmt: skip
    assert f"step 1/{plan['total_steps']} loss" in told
    assert "finished after" in told
    assert plan["measured"]
    assert plan["step_seconds"] > 0
    assert "measured: " in told


def test_a_second_start_computes_no_tokens_anew_and_learns_the_same(with_model: Home, pairs_file: Path) -> None:
    losses, made = [], []
    for _ in range(2):
        folder = folder_of(with_model, pairs_file, max_steps=3)
        code, told = work(folder)
        assert code == 0, told
        losses.append([event["loss"] for kind in ("step", "eval") for event in events_of(folder, kind)])
        made.append([path.stat().st_ino for path in (with_model.state / "cache" / "tokens").iterdir()])
    assert made[0] == made[1]
    assert len(made[0]) == 1
    assert losses[0] == losses[1]
    assert len(losses[0]) > 4


def test_bitsandbytes_is_not_imported_for_nothing(with_model: Home, pairs_file: Path, tmp_path: Path) -> None:
    """PEFT would, for a second at every start."""
    package = tmp_path / "packages" / "bitsandbytes"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    first = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
    code, told = work(folder_of(with_model, pairs_file, max_steps=1), PYTHONPATH=first)
    assert code == 0, told
    code, told = work(folder_of(with_model, pairs_file, max_steps=1, quantization="4bit"), PYTHONPATH=first)
    assert code != 0
    assert "imported" in told


def test_a_count_of_rows_is_held_back(with_model: Home, pairs_file: Path) -> None:
    folder = folder_of(with_model, pairs_file, max_steps=2, validation_rows=7)
    code, told = work(folder)
    assert code == 0, told
    plan = events_of(folder, "preflight")[0]
    assert (plan["rows"], plan["validation_rows"]) == (33, 7)


def test_stopped_killed_and_resumed(with_model: Home, pairs_file: Path) -> None:
    folder = folder_of(with_model, pairs_file, epochs=100, save_every=5, eval_every=5)
    process = start(folder)
    wait_for_step(folder, process, 12)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    done = events_of(folder, "step")[-1]["step"]
    kept = max(int(path.parent.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*/manifest.json"))
    assert done - 10 <= kept <= done, "the newest checkpoint, or the one before where that was still being written"

    process = start(folder)
    wait_for_step(folder, process, done + 3)
    process.terminate()
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told
    stopped = events_of(folder, "stopped")[0]
    assert (stopped["kept"], stopped["output"]) == ("last", "adapter")
    steps = [event["step"] for event in events_of(folder, "step")]
    again = steps[steps.index(done) + 1 :]
    assert again == list(range(again[0], again[-1] + 1))
    assert again[0] == kept + 1

    write_json(folder / "stop.json", {"keep": "best"})
    code, told = work(folder)
    assert code == 0, told
    assert events_of(folder, "stopped")[1]["kept"] == "best"


def test_only_one_computes(with_model: Home, pairs_file: Path) -> None:
    folder = folder_of(with_model, pairs_file)
    lock = computing_lock(with_model)
    assert lock.acquire(timeout=1)
    try:
        code, told = work(folder)
    finally:
        lock.release()
    assert code == BUSY, told
    assert [event["type"] for event in EventLog(folder).all()] == ["phase"]


def test_failures_have_a_name(with_model: Home, pairs_file: Path) -> None:
    folder = folder_of(with_model, pairs_file)
    (with_model.models / "tiny" / "model.safetensors").write_bytes(b"\0" * 64)
    code, told = work(folder)
    failed = events_of(folder, "failed")
    assert code == 1, told
    assert [event["code"] for event in failed] == ["broken_weights"]
    assert "Traceback" not in told

    other = folder_of(with_model, pairs_file, target_modules=["nothing_proj"])
    shutil.rmtree(with_model.models / "tiny")
    assert work(other)[0] == 1
    assert events_of(other, "failed")[0]["code"] == "no_tokenizer"


def test_unknown_layers_are_listed(with_model: Home, pairs_file: Path) -> None:
    folder = folder_of(with_model, pairs_file, target_modules=["nothing_proj"])
    assert work(folder)[0] == 1
    failed = events_of(folder, "failed")[0]
    assert failed["code"] == "unknown_target_modules"
    assert "q_proj" in failed["remedy"]["text"]
