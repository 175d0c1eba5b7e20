"""Check: a run measured before it starts, by a real worker that leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from afina import actions
from afina.core.paths import Home
from afina.runs.launch import computing_lock


@pytest.fixture
def spec(home: Home, tiny_model: Path, pairs_file: Path) -> dict[str, Any]:
    shutil.copytree(tiny_model, home.models / "tiny")
    shutil.copy(pairs_file, home.datasets / "sums.json")
    return {"model": "tiny", "dataset": "sums.json", "max_steps": 7}


def nothing_left(home: Home) -> bool:
    lock = computing_lock(home)
    free = lock.acquire(timeout=5)
    lock.release()
    return free and not list(home.runs.iterdir()) and not actions.list_runs(home)


def test_memory_and_time_are_measured_and_nothing_is_left(home: Home, spec: dict[str, Any]) -> None:
    estimate = actions.plan_run(home, spec).plan
    plan = actions.check_run(home, spec).plan
    assert estimate is not None
    assert plan is not None
    assert (estimate.measured, plan.measured, plan.busy) == (False, True, False)
    assert (plan.rows, plan.total_steps) == (estimate.rows, 7)
    assert plan.memory
    assert plan.memory > 100e6
    assert plan.seconds is not None
    assert plan.step_seconds is not None
    assert 0 < plan.step_seconds < plan.seconds + 1
    assert nothing_left(home)


def test_while_a_run_computes_it_is_an_estimate(home: Home, spec: dict[str, Any]) -> None:
    lock = computing_lock(home)
    assert lock.acquire(timeout=1)
    plan = actions.check_run(home, spec).plan
    lock.release()
    assert plan is not None
    assert (plan.measured, plan.busy, plan.total_steps) == (False, True, 7)
    assert nothing_left(home)


def test_what_would_fail_is_told(home: Home, spec: dict[str, Any]) -> None:
    (home.models / "tiny" / "model.safetensors").write_bytes(b"\0" * 64)
    found = actions.check_run(home, spec)
    assert found.plan is None
    assert [problem.code for problem in found.problems] in (["broken_model"], ["broken_weights"])
    assert nothing_left(home)


def test_it_can_be_called_off(home: Home, spec: dict[str, Any]) -> None:
    begin = time.monotonic()
    plan = actions.check_run(home, spec, cancelled=lambda: bool(list(home.runs.glob(".new-*/process.json")))).plan
    assert plan is not None
    assert not plan.measured
    assert time.monotonic() - begin < 5
    assert nothing_left(home)


def test_by_command(home: Home, spec: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "afina.cli", "train", "--check", "--home", str(home.root)]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in spec.items()]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "7 steps" in done.stdout
    assert "Measured: " in done.stdout
    told = subprocess.run([*command, *flags, "--json"], capture_output=True, text=True, check=False)
    assert json.loads(told.stdout)["measured"] is True
    wrong = subprocess.run([*command, *flags, "--epochs=-1"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    assert nothing_left(home)
