"""What a process leaves out that computes on the processor. In processes of their own: what is imported stays."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afina.actions.starting import prepare
from afina.core.paths import Home

BEGIN = """
import json, sys, torch
from afina.engine import lean
lean.leave_out(torch.device(sys.argv[1]))
"""
LOADED = "{name: name in sys.modules for name in ('torch._dynamo.eval_frame', 'torch.distributed.tensor', 'peft')}"


def told(script: str, *arguments: str) -> Any:
    """What a process prints last, as JSON."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_on_the_processor_imports_neither(home: Home, tiny_model: Path, pairs_file: Path, method: str) -> None:
    shutil.copytree(tiny_model, home.models / "tiny")
    shutil.copy(pairs_file, home.datasets / pairs_file.name)
    settings = {"model": "tiny", "dataset": pairs_file.name, "method": method, "max_steps": 2, "save_every": 1}
    folder = prepare(home, settings).write(home)
    script = f"import json, sys; from afina.runs.worker import main; assert main([sys.argv[1]]) == 0; print(json.dumps({LOADED}))"
    found = told(script, str(folder))
    assert found == {"torch._dynamo.eval_frame": False, "torch.distributed.tensor": False, "peft": method == "lora"}


def test_who_compiles_has_the_whole_compiler() -> None:
    """After all that transformers and an optimizer ask of it at first."""
    script = f"""{BEGIN}
import transformers.models.llama.modeling_llama
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
before = {LOADED}
found = torch.compile(lambda x: x * 2, backend="eager")(torch.ones(2)).tolist()
assert torch._dynamo.disable is not lean._Unread.disable
print(json.dumps([before["torch._dynamo.eval_frame"], "torch._dynamo.eval_frame" in sys.modules, found]))
"""
    assert told(script, "cpu") == [False, True, [2.0, 2.0]]


def test_on_a_graphics_card_nothing_is_left_out() -> None:
    script = f"{BEGIN}\nprint(json.dumps([torch.distributed.is_available(), hasattr(torch._dynamo, 'eval_frame')]))"
    assert told(script, "cuda") == [True, True]
