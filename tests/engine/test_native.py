"""The compiled kernels beside their twins in PyTorch's own operators, and how they come to be."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from afina.engine import elementwise, native, segments
from afina.engine.elementwise import Norm
from afina.engine.loss import cross_entropy
from afina.engine.native import build
from afina.engine.native.adapters import spans
from afina.engine.native.halves import in_rows
from afina.engine.products import Product, Thin, over_all_tokens, over_tokens, padded
from afina.engine.segments import Heads, Look

SOURCE = Path(build.__file__).with_name(build.SOURCES[0])


def other_builds() -> list[tuple[str, str]]:
    """Compilers and processors other than what this machine would choose, as far as it can run what they make."""
    found = []
    if platform.machine() == "x86_64":
        found += [("cc", "-march=x86-64")]
        if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
            found += [("cc", "-march=haswell")]
    if platform.machine() == "aarch64":
        found += [("cc", "-march=armv8-a")]
    return found + [(each, "-march=native") for each in build.compilers() if Path(each).name == "clang"]


CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2}
formats = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
ways = pytest.mark.parametrize(
    ("dtype", "units"),
    [(torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False)],
    ids=["float32", "bfloat16", "bfloat16 without units"],
    indirect=["units"],
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=[None, *other_builds()], ids=lambda made: " ".join(made or ("own",)))
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL | None:
    if request.param is None:
        return native.library()
    compiler, processor = request.param
    made = tmp_path_factory.mktemp("kernels") / "made.so"
    subprocess.run([compiler, processor, *build.FLAGS, str(SOURCE), "-o", str(made), "-lm"], check=True)
    return ctypes.CDLL(str(made))


@pytest.fixture
def both(
    monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL | None
) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """What a function gives with the kernels and without."""

    def ask(work: Callable[[], Any]) -> tuple[Any, Any]:
        assert library is not None, "this machine has a C compiler, so it must have the kernels"
        found = []
        for kernels in (library, None):
            with monkeypatch.context() as patch:
                patch.setattr(native, "library", lambda kernels=kernels: kernels)
                found.append(work())
        return found[0], found[1]

    return ask


@pytest.fixture
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the processor's matrix units where it has some, and without."""
    if not request.param:
        monkeypatch.setattr(native, "has_units", lambda: False)


def check(ours: Any, twins: Any, dtype: torch.dtype, times: float = 1.0) -> None:
    if isinstance(ours, tuple):
        for one, other in zip(ours, twins, strict=True):
            check(one, other, dtype, times)
        return
    assert (ours is None) == (twins is None)
    if ours is not None:
        assert ours.shape == twins.shape
        assert torch.linalg.vector_norm(ours.double() - twins.double()) <= times * CLOSE[dtype] * (
            1e-3 + torch.linalg.vector_norm(twins.double())
        )


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


@formats
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("width", [7, 64, 576])
def test_norms(both: Any, dtype: torch.dtype, plus_one: bool, width: int) -> None:
    norm = Norm(torch.nn.Parameter(torch.rand(width).to(dtype)), 1e-5, plus_one)
    x, dy, residual = (numbers(33, width, dtype=dtype) for _ in range(3))
    with torch.no_grad():
        check(*both(lambda: norm.forward(x)), dtype)
        inverse = norm.inverse(x)
        check(*both(lambda: norm.apply(x, inverse)), dtype)
        check(*both(lambda: norm.backward(dy, x, inverse)), dtype)
        check(*both(lambda: norm.backward(dy, x, inverse, residual.clone())), dtype)


@formats
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates(both: Any, dtype: torch.dtype, activation: str) -> None:
    gate_up, d_inner = numbers(9, 2 * 45, dtype=dtype) * 4, numbers(9, 45, dtype=dtype)
    check(*both(lambda: elementwise.gated(gate_up, activation)), dtype)
    check(*both(lambda: elementwise.gated_backward(d_inner, gate_up, activation)), dtype)


@formats
@pytest.mark.parametrize("back", [False, True])
def test_rotations(both: Any, dtype: torch.dtype, back: bool) -> None:
    angles = torch.rand(11, 1, 8) * 6
    rows = numbers(11, 5 * 16 + 16, dtype=dtype)

    def turned() -> Tensor:
        copy = rows.clone()
        x = segments.split_heads(copy[:, : 5 * 16], 16)
        elementwise.rotate(x, angles.cos().to(dtype), angles.sin().to(dtype), back=back)
        return copy

    check(*both(turned), dtype)


@ways
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("words", "width"), [(301, 24), (1120, 96)])
def test_losses(
    both: Any, dtype: torch.dtype, units: None, softcap: float | None, bias: bool, words: int, width: int
) -> None:
    hidden, weight = numbers(70, width, dtype=dtype), numbers(words, width, dtype=dtype)
    more = numbers(words, dtype=dtype) if bias else None
    targets = torch.randint(0, words, (70,))

    def losses() -> tuple[Any, ...]:
        given = [each.clone().requires_grad_() for each in (hidden, weight, more) if each is not None]
        loss = cross_entropy(given[0], given[1], given[2] if bias else None, targets, 0.5, softcap)
        loss.backward()  # type: ignore[no-untyped-call]
        return (loss.detach(), *(each.grad for each in given))

    check(*both(losses), dtype)


@ways
@pytest.mark.parametrize("softcap", [None, 5.0, 30.0])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("tokens", "words", "width"), [(70, 1120, 96), (1, 32, 32), (130, 512, 64)])
def test_losses_of_a_frozen_head(
    dtype: torch.dtype, units: None, softcap: float | None, learned: bool, tokens: int, words: int, width: int
) -> None:
    hidden, weight = numbers(tokens, width, dtype=dtype), numbers(words, width, dtype=dtype)
    weight *= torch.linspace(0.1, 2.0, words)[:, None].to(dtype)  # the highest score comes late and moves often
    targets, often = torch.randint(0, words, (tokens,)), torch.rand(tokens)
    if (
        learned
    ):  # long rows of the targets' own, so that nearly all weight is theirs and the gradient a small difference
        targets = torch.randint(words // 2, words, (tokens,))
        hidden = 3 * weight[targets] / weight[targets].float().norm(dim=1, keepdim=True).to(dtype)
    given = hidden.clone().requires_grad_()
    loss = cross_entropy(given, weight, None, targets, 0.5, softcap, often)
    loss.backward()  # type: ignore[no-untyped-call]
    exact = hidden.double().requires_grad_()
    scores = exact @ weight.double().t() * 0.5
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    wanted = torch.nn.functional.cross_entropy(scores, targets, reduction="none") @ often.double()
    wanted.backward()  # type: ignore[no-untyped-call]
    near = torch.bfloat16 if learned else dtype  # of near numbers, a difference has fewer digits
    rounded = (
        learned and dtype == torch.bfloat16 and not native.has_units()
    )  # the scores too, which shows in such differences
    check((loss.detach(), given.grad), (wanted.detach(), exact.grad), near, times=3.0 if rounded else 1.0)
    with torch.no_grad():
        assert cross_entropy(hidden, weight, None, targets, 0.5, softcap, often) == loss


@ways
@pytest.mark.parametrize("window", [None, 20, 64, 200])
@pytest.mark.parametrize("size", [16, 48, 64, 96])
@pytest.mark.parametrize("lengths", [(1, 64, 65), (150, 3, 31), (300,)])
def test_attention(
    both: Any, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, units: None, window: int | None, size: int,
    lengths: tuple[int, ...],
) -> None:  # fmt: skip
    monkeypatch.setattr(segments, "_has_units", lambda dtype: False)
    heads = Heads(6, 2, size, size**-0.5, window)
    qkv = numbers(sum(lengths), sum(heads.widths), dtype=dtype)
    d_out = numbers(sum(lengths), heads.widths[0], dtype=dtype)
    ours, twins = both(lambda: segments.attend(qkv, heads, lengths))
    check(ours, twins, dtype)
    check(*both(lambda: segments.attend_backward(d_out, qkv, *twins, heads, lengths)), dtype)


@ways
@pytest.mark.parametrize("window", [None, 120])
@pytest.mark.parametrize("shared", [5, 64, 100])
def test_looking_back(both: Any, dtype: torch.dtype, units: None, window: int | None, shared: int) -> None:
    """Three examples behind what they share, the last two behind more of it: one look within the other."""
    heads = Heads(6, 2, 32, 0.2, window)
    lengths = (shared, 30, 10, 70)
    total = sum(lengths)
    looks = [Look(shared, total, 0, shared), Look(shared + 40, total, shared + 30, shared + 40)]
    begins = (0, shared, shared, shared + 10)
    positions = torch.cat([torch.arange(n) + begin for n, begin in zip(lengths, begins, strict=True)])
    qkv, d_out = numbers(total, sum(heads.widths), dtype=dtype), numbers(total, heads.widths[0], dtype=dtype)
    ours, twins = both(lambda: segments.attend(qkv, heads, lengths, looks, positions))
    check(ours, twins, dtype)
    check(*both(lambda: segments.attend_backward(d_out, qkv, *twins, heads, lengths, looks, positions)), dtype)


@ways
@pytest.mark.parametrize("shared", [33, 400])
def test_many_look_back_at_the_same(both: Any, dtype: torch.dtype, units: None, shared: int) -> None:
    """So many that one thread takes all heads that share keys, and keys in more blocks than are taken together."""
    heads = Heads(4, 2, 64, 0.125)
    lengths = (shared, *(5 + 13 * n % 70 for n in range(20 if shared < 100 else 60)))
    total = sum(lengths)
    positions = torch.cat([torch.arange(shared), *(torch.arange(shared, shared + n) for n in lengths[1:])])
    qkv, d_out = numbers(total, sum(heads.widths), dtype=dtype), numbers(total, heads.widths[0], dtype=dtype)
    given = lengths, [Look(shared, total, 0, shared)], positions
    ours, twins = both(lambda: segments.attend(qkv, heads, *given))
    check(ours, twins, dtype)
    check(*both(lambda: segments.attend_backward(d_out, qkv, *twins, heads, *given)), dtype)


def test_no_memory_for_the_way_back_is_an_error() -> None:
    """Not the end of the process: a run goes on with less. One long example, whose gradients of keys each head keeps for itself."""
    code = """if True:
        import resource, torch
        from afina.engine import segments
        heads = segments.Heads(4, 1, 64, 0.125)
        qkv, d_out = torch.randn(40_000, 384).bfloat16(), torch.randn(40_000, 256).bfloat16()
        out, sums = torch.zeros_like(d_out), torch.zeros(4, 40_000)
        segments.attend_backward(d_out[:64], qkv[:64], out[:64], sums[:, :64].contiguous(), heads, [64])  # threads, kernels
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (48 << 20),) * 2)
        try:
            segments.attend_backward(d_out, qkv, out, sums, heads, [40_000])
        except MemoryError:
            print("no memory")
    """
    assert ask(code, OMP_NUM_THREADS="2") == "no memory"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc how large the heap is")
def test_what_a_call_gives_back_serves_the_next() -> None:
    """Also where something small stays in between: by aligned_alloc the heap grew with every call."""
    if not native.has_units():
        pytest.skip("only kernels for whole blocks of bfloat16 take memory so")
    code = """if True:
        import ctypes, torch
        from afina.engine import native
        class Heap(ctypes.Structure):
            _fields_ = [(name, ctypes.c_size_t) for name in "arena free fast maps mapped most fastest used unused top".split()]
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = Heap
        assert native.has_units()
        hidden, weight = torch.randn(32, 2048).bfloat16(), torch.randn(512, 2048).bfloat16()
        targets, kept, sizes = torch.zeros(32, dtype=torch.long), [], []
        for _ in range(600):
            native.loss_of_words(hidden, weight, targets, 1.0, None, True)  # 4 MB for the time of the call
            kept.append(torch.empty(100_000))
            sizes.append(libc.mallinfo2().arena)
        grown = (sizes[-1] - sizes[300]) / 2**20  # 114 MB are kept
        print(grown if grown > 160 else "steady")
    """
    settings = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_ARENA_MAX": "1"}
    assert ask(code, OMP_NUM_THREADS="2", **settings) == "steady"


@ways
def test_how_the_work_is_shared_out_changes_nothing(dtype: torch.dtype, units: None) -> None:
    heads = Heads(6, 2, 32, 0.2)
    lengths = (150, 3, 70)
    given = lengths, [Look(150, 223, 0, 40)], torch.cat([torch.arange(150), torch.arange(40, 113)])
    qkv, d_out = numbers(223, sum(heads.widths), dtype=dtype), numbers(223, 192, dtype=dtype)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, sums = segments.attend(qkv, heads, *given)
            found.append((out, sums, segments.attend_backward(d_out, qkv, out, sums, heads, *given)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@ways
@pytest.mark.parametrize("rank", [0, 4, 48])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(64, 96, 32), (576, 64, 640), (33, 64, 96), (64, 40, 64)])
@pytest.mark.parametrize("turned", [True, False])
def test_products(
    dtype: torch.dtype, units: None, rank: int, tokens: int, inputs: int, outputs: int, turned: bool
) -> None:
    weight = numbers(*((outputs, inputs) if turned else (inputs, outputs)), dtype=dtype)
    bias, add = numbers(outputs, dtype=dtype), numbers(tokens, outputs, dtype=dtype)
    x = numbers(tokens, inputs, dtype=dtype)
    whole = padded(rank, dtype)
    down, up = (Thin(torch.zeros(whole, width, dtype=dtype)) for width in (inputs, outputs))
    for thin in (down, up):
        thin.matrix[:rank] = numbers(rank, thin.matrix.shape[1], dtype=dtype)
        thin.changed()
    thins = (down, up) if rank else (None, None)
    out = torch.empty_like(add)
    y, z = Product(weight, turned, *thins, bias)(x, add, out)
    assert y is out
    wanted = x.double() @ (weight.t() if turned else weight).double() + bias.double() + add.double()
    if rank:
        assert z is not None
        check(z, x.double() @ down.matrix.double().t(), dtype)
        wanted += z.double() @ up.matrix.double()
        check(over_tokens(z, x), z.double().t() @ x.double(), dtype)
    check(y, wanted, dtype)


LAYERS = [(slice(0, 16), slice(0, 40)), (slice(16, 32), slice(40, 64)), (slice(32, 40), slice(96, 128))]
"""Ranks and outputs of three adapters over 160 outputs: two meet within 32 outputs, and some outputs have none."""


def test_spans_hold_all_places_in_whole_steps() -> None:
    columns, ranks = spans(torch.zeros(64, 160), LAYERS)
    assert columns.tolist() == [[0, 64], [32, 64], [96, 128], [0, 0]]
    assert ranks.tolist() == [[0, 16], [0, 32], [0, 0], [32, 48], [0, 0]]


@ways
@pytest.mark.parametrize("turned", [True, False])
def test_products_leave_out_ranks_that_are_zeros(dtype: torch.dtype, units: None, turned: bool) -> None:
    x, weight = numbers(70, 96, dtype=dtype), numbers(160, 96, dtype=dtype)
    down, up = Thin(torch.zeros(64, 96, dtype=dtype)), Thin(torch.zeros(64, 160, dtype=dtype), LAYERS)
    down.matrix[:40] = numbers(40, 96, dtype=dtype)
    for ranks, outputs in LAYERS:
        up.matrix[ranks, outputs] = numbers(ranks.stop - ranks.start, outputs.stop - outputs.start, dtype=dtype)
    for thin in (down, up):
        thin.changed()
    y, z = Product(weight if turned else weight.t().contiguous(), turned, down, up)(x)
    assert z is not None
    check(y, x.double() @ weight.double().t() + z.double() @ up.matrix.double(), dtype)
    dy = numbers(70, 160, dtype=dtype)
    _, z = Product(weight.t().contiguous() if turned else weight, turned, up, down)(dy)
    assert z is not None
    check(z, dy.double() @ up.matrix.double().t(), dtype)


def test_what_cannot_be_seen_weighs_nothing_at_all(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    """Not even 1e-38: products with such numbers are a hundred times as slow."""
    monkeypatch.setattr(native, "library", lambda: library)
    heads = Heads(1, 1, 16, 1.0, window=3)
    qkv = torch.randn(40, 48)
    qkv[:30, 32:] = 3e38
    out, _ = segments.attend(qkv, heads, [40])
    assert out[32:].abs().max() < 10


@ways
def test_what_is_no_number_stays_none(dtype: torch.dtype, units: None) -> None:
    qkv = numbers(64, 128, dtype=dtype)
    qkv[3, 70] = float("nan")  # in a key
    assert segments.attend(qkv, Heads(2, 1, 32, 0.2), (64,))[0][3:].isnan().any(dim=1).all()
    x = numbers(3, 32, dtype=dtype)
    x[1, 5] = float("nan")
    y, _ = Norm(torch.ones(32, dtype=dtype), 1e-5).forward(x)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()
    assert elementwise.gated(x, "silu")[1].isnan().any()
    for words in (40, 64):
        assert cross_entropy(x, torch.ones(words, 32, dtype=dtype), None, torch.zeros(3, dtype=torch.long)).isnan()


def ask(code: str, **environment: str) -> str:
    given = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    return done.stdout.strip()


LOADS = "from afina.engine.native.build import library; print(library() is not None)"


def test_made_once_and_then_loaded(tmp_path: Path) -> None:
    assert ask(LOADS, AFINA_CACHE=str(tmp_path)) == "True"
    (made,) = (tmp_path / "kernels").iterdir()
    first = made.stat().st_mtime_ns
    assert ask(LOADS, AFINA_CACHE=str(tmp_path), PATH="") == "True"
    assert made.stat().st_mtime_ns == first


def test_without_a_compiler_pytorch_does_it(tmp_path: Path) -> None:
    assert ask(LOADS, AFINA_CACHE=str(tmp_path), PATH="", CC="") == "False"
    assert ask(LOADS, AFINA_CACHE=str(tmp_path), AFINA_KERNELS="torch") == "False"


def test_not_where_a_second_libomp_would_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert build.library.__wrapped__() is None


def test_compilers_without_openmp_are_not_asked_for_the_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nfor word; do [ "$word" = -fopenmp ] && exit 1; done\nexit 0\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert str(compiler) not in build.compilers()


def test_what_others_could_have_written_is_not_run(tmp_path: Path) -> None:
    assert ask(LOADS, AFINA_CACHE=str(tmp_path)) == "True"
    (made,) = (tmp_path / "kernels").iterdir()
    made.chmod(0o777)
    assert ask(LOADS, AFINA_CACHE=str(tmp_path)) == "False"


def test_a_library_that_is_broken_is_not_used(tmp_path: Path) -> None:
    assert ask(LOADS, AFINA_CACHE=str(tmp_path)) == "True"
    (made,) = (tmp_path / "kernels").iterdir()
    made.write_bytes(b"\0" * 100)
    assert ask(LOADS, AFINA_CACHE=str(tmp_path)) == "False"


@ways
@pytest.mark.parametrize("shape", [(96, 352, 1312), (640, 608, 32), (64, 64, 64), (33, 50, 7)])
def test_gradients_of_weights(shape: tuple[int, int, int], dtype: torch.dtype, units: None) -> None:
    """Over sizes beyond and below what stays in a cache at once; rounded, in float32, and onto what is there."""
    tokens, outputs, inputs = shape
    dy, x = torch.randn(tokens, outputs).to(dtype), torch.randn(tokens, inputs).to(dtype)
    wanted = dy.double().t() @ x.double()
    rounded = over_all_tokens(dy, x, torch.empty(outputs, inputs, dtype=dtype))
    wide = over_all_tokens(dy, x, torch.full((outputs, inputs), torch.nan))
    onto = over_all_tokens(dy, x, wide.clone(), add=True)
    exact = native.has_units() and tokens % 32 == 0
    for found, expected, near in [(rounded, wanted, CLOSE[dtype]), (wide, wanted, 1e-6 if exact else CLOSE[dtype])]:
        assert float((found.double() - expected).norm() / expected.norm()) < near
    assert float((onto.double() - wide - wanted).norm() / wanted.norm()) < (1e-6 if exact else CLOSE[dtype])


@pytest.mark.parametrize("side", [0, 1])
def test_gradients_of_weights_from_woven_blocks(side: int) -> None:
    """Rows come back out of the blocks anywhere; only the kernels of matrix units take the blocks themselves."""
    given = [torch.randn(96, 352).bfloat16(), torch.randn(96, 608).bfloat16()]
    wanted = over_all_tokens(*given, torch.empty(352, 608))
    rows = given[side]
    blocks = rows.view(3, 16, 2, -1, 32).permute(0, 3, 1, 4, 2).reshape(rows.shape)
    assert torch.equal(in_rows(blocks), rows)
    woven = (side == 0, side == 1) if native.has_units() else (False, False)
    given[side] = blocks if native.has_units() else in_rows(blocks)
    assert torch.equal(over_all_tokens(*given, torch.empty(352, 608), woven=woven), wanted)
