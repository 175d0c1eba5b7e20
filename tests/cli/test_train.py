"""`afina train` with the real worker on a tiny model, with and without others looking after the queue."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from afina import actions
from afina.core.events import ENDED
from afina.core.paths import Home
from afina.runs.supervisor import Supervisor
from tests.runs import helpers

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def home(home: Home, tiny_model: Path, pairs_file: Path) -> Home:
    shutil.copytree(tiny_model, home.models / "tiny")
    shutil.copy(pairs_file, home.datasets / "sums.json")
    return home


def command(home: Home, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "afina.cli", *arguments, "--home", str(home.root)]


def train(home: Home, *flags: str, json_lines: bool = True) -> subprocess.Popen[str]:
    arguments = ["train", "--model", "tiny", "--dataset", "sums.json", *flags, *(["--json"] if json_lines else [])]
    return subprocess.Popen(command(home, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_by_command_is_followed_to_its_end_and_becomes_a_model(home: Home) -> None:
    process = train(home, "--max-steps", "4", "--warmup-steps", "1", "--name", "mine")
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    *events, result = [json.loads(line) for line in out.splitlines()]
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert {"phase", "preflight", "step", "eval", "sample", "checkpoint", "finished"} <= {
        event["type"] for event in events
    }
    assert set(result) == {"run", "status", "train_loss", "validation_loss", "output"}
    assert result["status"] == "succeeded"
    assert (Path(result["output"]) / "adapter_config.json").exists()
    plan = actions.plan_run(home, {"model": "tiny", "dataset": "sums.json", "max_steps": 4}).plan
    preflight = next(event for event in events if event["type"] == "preflight")
    assert plan is not None
    for name in ("rows", "validation_rows", "steps_per_epoch", "total_steps"):
        assert getattr(plan, name) == preflight[name], name
    assert abs(plan.tokens - preflight["tokens"]) < 0.1 * preflight["tokens"]

    said = subprocess.run(
        command(home, "chat", "mine", "--prompt", "Hello", "--max-tokens", "5"), capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.endswith("\n")


def test_a_run_says_what_shared_prefixes_save(home: Home) -> None:
    system = "You are a careful assistant of a small school by the sea, and you answer in a few plain words."
    flags = ("--system-prompt", system, "--share-prefixes", "on", "--max-steps", "2", "--warmup-steps", "1")
    process = train(home, *flags, "--name", "alike", json_lines=False)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert re.search(r"Shared prefixes: [4-9]\d % fewer tokens to compute\.", out)
    console = (home.runs / actions.get_run(home, "alike").id / "console.log").read_text(encoding="utf-8")
    assert re.search(r"shared prefixes: [4-9]\d% fewer tokens", console)


def test_what_the_checks_warn_of_is_said_before_the_run(home: Home) -> None:
    rows = [{"instruction": f"Who is number {n}?", "output": f"maria.soares{n}@gmail.com"} for n in range(9)]
    (home.datasets / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    arguments = ["train", "--model", "tiny", "--dataset", "people.jsonl", "--max-steps", "1", "--validation-share", "0"]
    done = subprocess.run(command(home, *arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert "personal data" in said[0]
    assert any("memorise" in line for line in said[1:])
    assert "afina datasets check FILE" in done.stderr


def test_interrupting_stops_the_run_and_keeps_what_it_learned(home: Home, tmp_path: Path) -> None:
    flags = ("--max-steps", "100000", "--epochs", "1000", "--batch-size", "1", "--name", "long", "--json")
    told = tmp_path / "told"
    with told.open("w") as out:  # a file, for a pipe that nobody reads is full after some hundred steps
        process = subprocess.Popen(
            command(home, "train", "--model", "tiny", "--dataset", "sums.json", *flags), stdout=out, stderr=out
        )
        helpers.until(lambda: any(run.step >= 2 for run in actions.list_runs(home)), timeout=120)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0, told.read_text()
    result = json.loads(told.read_text().splitlines()[-1])
    assert result["status"] == "stopped"
    assert (Path(result["output"]) / "adapter_config.json").exists()


def test_a_killed_command_leaves_its_run_and_those_that_wait_to_the_next(home: Home) -> None:
    first = train(home, "--epochs", "40", "--max-steps", "300", "--name", "first")
    helpers.until(lambda: any(run.step >= 1 for run in actions.list_runs(home)), timeout=120)
    second = train(home, "--max-steps", "2", "--name", "second")
    helpers.until(lambda: len(actions.list_runs(home)) == 2, timeout=60)
    assert actions.get_run(home, "second").queue_position == 1
    for process in (second, first):
        process.kill()
        process.communicate()
    keeper = Supervisor(home)
    helpers.until(
        lambda: all(run.status in ENDED for run in actions.list_runs(home)), lambda: keeper.tick(), timeout=180
    )
    assert {run.name: run.status for run in actions.list_runs(home)} == {"first": "succeeded", "second": "succeeded"}
    assert helpers.steps(home, actions.get_run(home, "first")) == list(range(1, 301))


def test_a_killed_worker_is_explained_and_resumed_by_command(home: Home) -> None:
    process = train(home, "--epochs", "10", "--max-steps", "40", "--save-every", "2", "--name", "hurt")
    helpers.until(lambda: any(run.step >= 5 for run in actions.list_runs(home)), timeout=120)
    run = actions.get_run(home, "hurt")
    worker = json.loads((home.runs / run.id / "process.json").read_text())
    os.kill(worker["pid"], signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    result = json.loads(out.splitlines()[-1])
    assert (process.returncode, result["status"], result["error"]["code"]) == (1, "failed", "killed")
    assert actions.get_run(home, "hurt").resumable
    again = subprocess.run(command(home, "runs", "resume", "hurt", "--json"), capture_output=True, text=True)
    result = json.loads(again.stdout.splitlines()[-1])
    assert (again.returncode, result["status"]) == (0, "succeeded"), again.stderr
    assert actions.get_run(home, "hurt").step == 40
