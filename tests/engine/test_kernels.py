"""The kernels of graphics cards for attention, by stand-ins with their signatures; flex attention as it runs on a processor.

None of this shows that a kernel works on a graphics card; it shows that what is handed to it means the same as the split.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.nn.attention import flex_attention, varlen

from afina.engine import device as devices
from afina.engine import kernels, model
from afina.engine.attention import Call, Laid
from afina.engine.batches import lay_end_to_end
from tests.invariant import test_packed as packed

CPU = torch.device("cpu")
CALLS = [
    Call(4, 4, 16, None, None, None),
    Call(4, 2, 16, 0.3, None, None),
    Call(9, 3, 8, None, 24, None),
    Call(4, 1, 16, 0.2, 24, 5.0),
    Call(4, 2, 16, None, None, 5.0),
]


def dense(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float | None, window: tuple[int, int], softcap: float
) -> Tensor:
    """q (T, heads, size), k and v (T, key heads, size): all pairs of tokens, and those crossed out that flash attention's
    documentation says are not seen: of other examples, more than `window[0]` before or `window[1]` after (-1: any)."""
    assert starts.dtype == torch.int32
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(q.shape[0])
    example = torch.bucketize(at, starts[1:], right=True)
    apart = at[:, None] - at[None, :]
    seen = example[:, None] == example[None, :]
    if window[0] >= 0:
        seen &= apart <= window[0]
    if window[1] >= 0:
        seen &= apart >= -window[1]
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


def varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert cu_seq_k is cu_seq_q
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert int(cu_seq_q[-1]) == query.shape[0]
    return dense(query, key, value, cu_seq_q, scale, window_size, 0.0)


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0,
) -> Tensor:  # fmt: skip
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    right = 0 if causal else window_size[1]
    return dense(q, k, v, cu_seqlens_q, softmax_scale, (window_size[0], right), softcap)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """All three kernels on the processor: two by `dense`, flex attention allowed to go backward as it is."""
    torch._dynamo.reset()
    package: Any = ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda query, key, value: None)


@pytest.mark.parametrize("call", CALLS, ids=repr)
@pytest.mark.parametrize("name", ["varlen", "flash", "flex"])
@pytest.mark.usefixtures("stand_ins")
def test_the_split_s_results_and_gradients(name: str, call: Call) -> None:
    right = name != "varlen" or call.softcap is None
    assert kernels.agrees(name, call, CPU, torch.float32) is right


@pytest.mark.usefixtures("stand_ins")
def test_a_kernel_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def far_sighted(*given: Any, window_size: tuple[int, int], **more: Any) -> Tensor:
        return varlen_attn(*given, window_size=(-1, 0), **more)

    monkeypatch.setattr(varlen, "varlen_attn", far_sighted)
    near, all_before = Call(4, 2, 16, None, 24, None), Call(4, 2, 16, None, None, None)
    assert kernels.best(["varlen", "flash"], [all_before], CPU, torch.float32) == "varlen"
    assert kernels.best(["varlen", "flash"], [all_before, near], CPU, torch.float32) == "flash"
    assert kernels.best(["varlen"], [near], CPU, torch.float32) == kernels.SPLIT


def test_a_kernel_that_does_not_run_is_not_taken() -> None:
    """As they are, on a processor: PyTorch's has no such kernel, the package is missing, flex attention refuses gradients."""
    assert kernels.best(["varlen", "flash", "flex"], CALLS[:1], CPU, torch.bfloat16) == kernels.SPLIT


@pytest.mark.parametrize("window", [None, 24, 200, 1000])
@pytest.mark.parametrize("lengths", [(37, 1, 150, 70), (128,), (128, 256, 5), (700,), (3,)])
def test_blocks_without_looking_at_all_pairs(lengths: tuple[int, ...], window: int | None) -> None:
    """The mask made of lengths is the one PyTorch makes by asking about every pair of tokens."""
    row = Laid(lengths)
    made = kernels.block_mask(row, window, CPU)
    assert kernels.block_mask(row, window, CPU) is made, "once a row"
    size = made.seq_lengths[0]
    wanted = flex_attention.create_block_mask(made.mask_mod, None, None, size, size, device="cpu")
    assert torch.equal(made.to_dense(), wanted.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(made, name), getattr(wanted, name)), name
    example = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    tokens = len(example)
    pairs = flex_attention.create_mask(made.mask_mod, None, None, size, size, device="cpu")[0, 0, :tokens, :tokens]
    at = torch.arange(tokens)
    apart = at[:, None] - at[None, :]
    assert torch.equal(pairs, (example[:, None] == example[None, :]) & (apart >= 0) & (apart < (window or tokens + 1)))


@pytest.mark.parametrize("given", [["varlen", "flash"], ["flex"]])
@pytest.mark.usefixtures("stand_ins")
def test_every_family_by_every_kernel(given: list[str], family_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' layers with our attention, as on a graphics card: loss and gradients are PEFT's and transformers' own."""
    monkeypatch.setattr(devices, "attention_kernels", lambda device, dtype: given)
    monkeypatch.setattr(devices, "computes_layers", lambda device: False)
    examples = packed.items()
    _, reference = packed.wrapped(family_model, fast=False)
    _, fast = packed.wrapped(family_model, fast=True)
    expected = packed.transformers_loss(reference, examples)
    expected.backward()
    network = model.Network(fast)
    capped = getattr(network.config, "attn_logit_softcapping", None) is not None
    assert (network.path, network.attention) == ("packed", given[-1] if capped else given[0])
    loss = network.backward(lay_end_to_end(examples), 1.0)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    packed.assert_same(packed.gradients(fast), packed.gradients(reference))


@pytest.mark.usefixtures("stand_ins")
def test_activations_computed_again_see_the_same_row(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "attention_kernels", lambda device, dtype: ["flex"])
    monkeypatch.setattr(devices, "computes_layers", lambda device: False)
    found = []
    for again in (False, True):
        _, base = packed.wrapped(tiny_model, fast=True)
        base.train()
        network = model.Network(base)
        if again:
            network.checkpoint_activations()
        assert network.attention == "flex"
        found.append((network.backward(lay_end_to_end(packed.items()), 1.0), packed.gradients(base)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    packed.assert_same(found[1][1], found[0][1])
