"""run.py: what a fresh machine sees, without repeating the installation."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_script", ROOT / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_needs_nothing_but_the_standard_library() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", str(ROOT / "run.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_samples_are_placed_once_and_a_deleted_one_stays_deleted(run: ModuleType, tmp_path: Path) -> None:
    datasets = tmp_path / "training" / "datasets"
    datasets.mkdir(parents=True)
    run.place_samples(tmp_path)
    placed = {item.name for item in datasets.iterdir()}
    assert {"timor-leste.txt", "tetun.jsonl"} <= placed
    (datasets / "tetun.jsonl").unlink()
    (datasets / "timor-leste.txt").write_text("mine now")
    run.place_samples(tmp_path)
    assert not (datasets / "tetun.jsonl").exists()
    assert (datasets / "timor-leste.txt").read_text() == "mine now"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        (
            "NewConnectionError: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution",
            "Check the network",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0", "no file for this Python"),
        (
            "ERROR: Could not find a version that satisfies the requirement setuptools>=77 (from versions: none)\n"
            "ERROR: No matching distribution found for setuptools>=77",
            "Check the network",
        ),
        ("ERROR: ResolutionImpossible: for help visit https://pip.pypa.io", "Check which registry pip uses"),
        ("PermissionError: [Errno 13] Permission denied: 'x'", "cannot be written"),
        ("something else\nERROR: it broke\n", "ERROR: it broke"),
    ],
)
def test_a_failed_installation_is_one_sentence_with_its_remedy(run: ModuleType, said: str, expected: str) -> None:
    assert expected in run.explain_install(said)
    assert "\n" not in run.explain_install(said)


def test_the_constraints_pin_every_dependency() -> None:
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {requirement.split("[")[0].split(">")[0].split("=")[0].strip().lower() for requirement in wanted}
    assert names <= pinned, names - pinned


@pytest.mark.slow
def test_a_prepared_checkout_is_ready_again_in_seconds(starter: Path, tmp_path: Path) -> None:
    if not (ROOT / ".venv" / "afina-installed.json").exists():
        pytest.fail("run.py prepares the environment of these tests; start them with: python3 run.py test")
    command = [sys.executable, str(ROOT / "run.py"), "setup", "--home", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ready" in done.stdout
    assert (tmp_path / "home" / "models" / starter.name / "model.safetensors").exists()
    assert json.loads((tmp_path / "home" / ".state" / "samples.json").read_text())


def test_without_a_compiler_setup_says_what_that_costs(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "PYTHON", Path(sys.executable))
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path))
    run.compile_kernels()
    assert "no C compiler" not in capsys.readouterr().out
    assert list((tmp_path / "kernels").iterdir())
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    run.compile_kernels()
    assert "sudo apt install gcc" in capsys.readouterr().out
