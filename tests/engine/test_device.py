"""What is measured of the machine, and what of that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from afina.core import events
from afina.engine import device as devices
from tests.invariant import common

CPU = torch.device("cpu")
SHAPES = [(64, 32)]


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Iterator[float]]:
    """What each format's rate will be found to be, one value a measurement; an empty cache."""
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices.psutil, "getloadavg", lambda: (0.0, 0.0, 0.0))
    told: dict[str, Iterator[float]] = {}
    monkeypatch.setattr(
        devices, "_rate", lambda device, shapes, rows, dtype: next(told[str(dtype).removeprefix("torch.")])
    )
    return told


def test_one_slow_moment_does_not_decide(rates: dict[str, Iterator[float]]) -> None:
    rates.update(float32=iter([10.0, 100.0, 90.0]), bfloat16=iter([50.0, 50.0, 50.0]))
    assert devices.fastest_dtype(CPU, SHAPES, 8) == (torch.float32, 100.0)


def test_a_tie_goes_to_the_exact_format(rates: dict[str, Iterator[float]]) -> None:
    rates.update(float32=iter([100.0] * 3), bfloat16=iter([114.0] * 3))
    assert devices.fastest_dtype(CPU, SHAPES, 8) == (torch.float32, 100.0)
    rates.update(float32=iter([100.0] * 3), bfloat16=iter([116.0] * 3))
    assert devices.fastest_dtype(CPU, SHAPES, 16) == (torch.bfloat16, 116.0)


def test_kept_only_from_a_quiet_machine(rates: dict[str, Iterator[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.psutil, "getloadavg", lambda: (999.0, 0.0, 0.0))
    rates.update(float32=iter([10.0] * 3), bfloat16=iter([50.0] * 3))
    assert devices.fastest_dtype(CPU, SHAPES, 8) == (torch.bfloat16, 50.0)
    monkeypatch.setattr(devices.psutil, "getloadavg", lambda: (0.0, 0.0, 0.0))
    rates.update(float32=iter([100.0] * 3), bfloat16=iter([50.0] * 3))
    assert devices.fastest_dtype(CPU, SHAPES, 8) == (torch.float32, 100.0)
    rates.update(float32=iter([]), bfloat16=iter([]))
    assert devices.fastest_dtype(CPU, SHAPES, 8) == (torch.float32, 100.0), "remembered"


def test_a_resumed_run_keeps_its_format(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is measured by then, and without any cache."""
    found = iter([(torch.bfloat16, 1e9), (torch.float32, 1e9)])
    monkeypatch.setattr(devices, "fastest_dtype", lambda *given: next(found))
    asked = iter([None, None, "last"])
    first = common.run(common.job(tiny_model, tmp_path / "run", precision="auto", stop=lambda: next(asked)))
    again = common.run(common.job(tiny_model, tmp_path / "run", precision="auto"))
    assert first[-1].type == "stopped"
    plans = [event for event in (*first, *again) if isinstance(event, events.Preflight)]
    assert {plan.precision for plan in plans} == {"bfloat16"}


def test_this_machine_has_what_it_says() -> None:
    assert devices.choose_device("auto").type in ("cpu", *(found["kind"] for found in devices.found()))
    assert devices.attention_kernels(CPU, torch.bfloat16) == []
    assert not devices.compiles(CPU)
    assert devices.has_fused_optimizer(CPU)
    state = devices.random_state(CPU)
    drawn = torch.rand(3)
    devices.restore_random_state(state, CPU)
    assert torch.equal(torch.rand(3), drawn)
