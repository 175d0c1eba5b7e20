"""Compiled norms, gates and rotations: the same results and gradients as transformers' own, here by the C++ compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from afina.engine import device as devices
from afina.engine import fused, model
from afina.engine.batches import lay_end_to_end
from tests.invariant import test_packed as packed


def test_layers_with_compiled_parts(family_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a graphics card; rows of three lengths, the second of which compiles once more."""
    monkeypatch.setattr(devices, "computes_layers", lambda device: False)
    _, plain = packed.wrapped(family_model, fast=True)
    reference = model.Network(plain)
    monkeypatch.setattr(devices, "compiles", lambda device: True)
    _, base = packed.wrapped(family_model, fast=True)
    network = model.Network(base)
    assert (reference.compiled, network.compiled) == ([], ["norm", "gate", "rotate"])
    for examples in (packed.items(), packed.items()[:2], packed.items()[3:]):
        row = lay_end_to_end(examples)
        assert network.backward(row, 1.0) == pytest.approx(reference.backward(row, 1.0), rel=1e-5)
    packed.assert_same(packed.gradients(base), packed.gradients(plain))


def broken(function: Any) -> Any:
    """What `devices.compiled` gives where there is no working compiler."""

    def fail(*given: Any) -> None:
        raise RuntimeError("no compiler")

    return fail


def test_without_a_compiler_layers_stay_as_they_are(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "compiled", broken)
    base = model.load(tiny_model, torch.float32, torch.device("cpu"))
    assert fused.install(base) == []
    assert "forward" not in vars(base.model.norm)


def test_what_fails_later_is_computed_uncompiled(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another length may be more than the compiler can do."""
    calls = 0

    def for_a_while(function: Any) -> Any:
        def call(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 5:
                raise RuntimeError("too much")
            return function(*given)

        return call

    monkeypatch.setattr(devices, "compiled", for_a_while)
    base = model.load(tiny_model, torch.float32, torch.device("cpu"))
    ids = torch.arange(20)[None]
    expected = base(input_ids=ids).logits
    assert fused.install(base) == ["norm", "gate", "rotate"]
    assert torch.allclose(base(input_ids=ids).logits, expected, atol=1e-6)
    assert calls > 5


def test_wrong_results_are_not_taken(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(function: Any) -> Any:
        def call(*given: Any) -> Any:
            out = function(*given)
            return out * 1.01 if isinstance(out, torch.Tensor) else out

        return call

    monkeypatch.setattr(devices, "compiled", off)
    assert fused.install(model.load(tiny_model, torch.float32, torch.device("cpu"))) == ["rotate"]
