"""Fixtures shared by all tests: a home of its own for each, tiny models, the starter, bounded threads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("AFINA_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from afina.core.paths import Home
from tests import tiny

# what a shell starts in the background may ignore interruptions, and so would all that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The two jobs that take minutes go first, so that two workers begin with one each."""
    items.sort(key=lambda item: "whole_job" not in item.nodeid)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test ever reaches the user's own home folder."""
    monkeypatch.setenv("AFINA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AFINA_DATABASE_URL", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home folder, created."""
    return Home(tmp_path / "home").create()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Llama with a tokenizer and a ChatML template; treat as read-only."""
    return tiny.build_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter model's folder, converted once into the user's cache; treat as read-only."""
    root = tmp_path_factory.mktemp("starter-home")
    command = [sys.executable, "-m", "afina.cli", "models", "add", "starter", "--home", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "models" / "SmolLM2-135M-Instruct"


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Forty short, distinct Alpaca rows in a JSON file."""
    rows = [{"instruction": f"What is {n} plus {n}?", "input": "", "output": f"It is {2 * n}."} for n in range(40)]
    path = tmp_path / "sums.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path
