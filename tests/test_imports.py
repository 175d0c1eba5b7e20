"""Imports point one way, and slow things are imported only where they are needed. Read from the source, not by running."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "afina"
ARROWS: dict[str, set[str]] = {
    "core": set(),
    "i18n": {"core"},
    "data": {"core"},
    "registry": {"data", "core"},
    "runs": {"registry", "data", "core"},
    "chat": {"data", "core"},
    "engine": {"data", "core"},
    "actions": {"runs", "registry", "chat", "data", "core"},
    "web": {"actions", "chat", "runs", "registry", "data", "core", "i18n"},
    "cli": {"actions", "chat", "web", "runs", "registry", "data", "core", "i18n"},
}
WORKERS = {
    "afina.runs.worker",
    "afina.runs.importer",
    "afina.runs.adder",
    "afina.chat.worker",
    "afina.engine.facts",
    "afina.data.looker",
}
MAY_USE_ENGINE = {"afina.runs.worker", "afina.runs.importer", "afina.chat.worker"}
HEAVY = {"torch", "transformers", "peft", "accelerate"}
MODULES = {
    ".".join(("afina", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


def imported(module: str) -> set[str]:
    """Full names of all that a module imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            base = node.module or ""
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return found


def package(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module: str) -> None:
    mine = package(module)
    for name in imported(module):
        if not name.startswith("afina.") or package(name) == mine:
            continue
        allowed = ARROWS.get(mine, set()) | ({"engine"} if module in MAY_USE_ENGINE else set())
        assert package(name) in allowed, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_a_worker(module: str) -> None:
    assert not imported(module) & WORKERS


@pytest.mark.parametrize("module", MODULES)
def test_only_the_engine_imports_torch(module: str) -> None:
    if package(module) != "engine":
        assert not {name.split(".")[0] for name in imported(module)} & HEAVY


@pytest.mark.parametrize("module", [name for name in MODULES if package(name) == "engine"])
def test_one_module_knows_kinds_of_devices(module: str) -> None:
    """What differs between graphics cards stands in `engine/device.py` alone."""
    if module != "afina.engine.device":
        named = re.findall(
            r"\b(?:cuda|mps|xpu|triton|is_available|find_spec)\b", MODULES[module].read_text(encoding="utf-8")
        )
        assert not named


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from afina.cli import main; main(sys.argv[1:]); "
        "print(sorted(set(sys.modules) & {'torch','transformers','peft','pyarrow','numpy','fastapi'}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_web_process_never_imports_torch() -> None:
    code = "import sys, afina.web.app; print(sorted(set(sys.modules) & {'torch','transformers','peft'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
