"""The whole job by command: a dataset never seen before teaches the starter model its new name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import identity

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def afina(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "afina.cli", *arguments, "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_identity_by_command(starter: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    added = afina("models", "add", "starter", home=home)
    assert added.returncode == 0, added.stderr
    dataset = identity.write(tmp_path / "identity.json")

    checked = afina("datasets", "check", str(dataset), "--json", home=home)
    report = json.loads(checked.stdout.splitlines()[-1])
    assert (checked.returncode, report["format"], report["rows"], report["errors"]) == (0, "alpaca", 91, [])
    assert report["tokens"] > 91 * 20

    settings = ("--epochs", "4", "--lora-rank", "16", "--learning-rate", "2e-4", "--name", "identity")
    trained = afina(
        "train", "--model", "starter", "--dataset", str(dataset), "--method", "lora", *settings, "--json", home=home
    )
    assert trained.returncode == 0, trained.stderr
    lines = [json.loads(line) for line in trained.stdout.splitlines()]
    result = lines[-1]
    assert result["status"] == "succeeded"
    assert result["train_loss"] < 0.5
    assert result["validation_loss"] < 0.5
    assert {"phase", "preflight", "step", "eval", "sample", "checkpoint", "finished"} <= {
        line.get("type") for line in lines
    }

    base = afina("chat", "starter", "--prompt", "Who are you?", home=home)
    tuned = afina("chat", result["run"], "--prompt", "Who are you?", home=home)
    by_name = afina("chat", "identity", "--prompt", "Who are you?", home=home)
    assert identity.NAME not in base.stdout
    assert identity.NAME in tuned.stdout, tuned.stdout + tuned.stderr
    assert identity.NAME in by_name.stdout

    listed = afina("runs", "list", home=home)
    assert "identity" in listed.stdout
    models = afina("models", "list", home=home)
    assert "identity" in models.stdout
