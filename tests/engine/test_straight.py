"""Files that go past the system's cache hold what was written to them, whatever the file system can."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.engine import straight
from afina.engine.straight import AT_ONCE, STRAIGHT, Straight

needs_straight = pytest.mark.skipif(not STRAIGHT, reason="no files are written straight here")
SIZES = st.one_of(st.integers(0, 5000), st.sampled_from([4096, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 2 * AT_ONCE + 4097]))


def made(size: int, number: int) -> bytes:
    return (bytes([number]) + os.urandom(1) + b"afina") * (size // 7 + 1)


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(SIZES, max_size=6), turn=st.integers(0, 8))
def test_what_is_written_is_read(sizes: list[int], turn: int) -> None:
    parts = [made(size, number)[:size] for number, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bin"
        path.write_bytes(b"what was there before" * 1000)
        with Straight(path) as file:
            for number, part in enumerate(parts):
                if number == turn:
                    file.by_cache()
                file.write(memoryview(part))
        assert path.read_bytes() == b"".join(parts)


@needs_straight
@pytest.mark.parametrize("refuses", ["open", "write"])
@pytest.mark.parametrize("code", straight.UNABLE)
def test_where_it_cannot_be_it_goes_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str, code: int
) -> None:
    import fcntl

    opened, wrote = os.open, os.write

    def refuse(done: Any, asked: bool) -> Any:
        if asked:
            raise OSError(code, os.strerror(code))
        return done()

    if refuses == "open":
        monkeypatch.setattr(
            straight.os,
            "open",
            lambda path, flags, mode=0o777: refuse(lambda: opened(path, flags, mode), bool(flags & STRAIGHT)),
        )
    else:
        monkeypatch.setattr(
            straight.os,
            "write",
            lambda file, data: refuse(lambda: wrote(file, data), bool(fcntl.fcntl(file, fcntl.F_GETFL) & STRAIGHT)),
        )
    data = made(3 * AT_ONCE, 1)
    with Straight(tmp_path / "a.bin") as file:
        file.write(data)
    assert (tmp_path / "a.bin").read_bytes() == data


@pytest.mark.parametrize("short", [1, 4096, 100_000])
def test_a_disk_that_takes_less_gets_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int) -> None:
    wrote = os.write
    monkeypatch.setattr(straight.os, "write", lambda file, data: wrote(file, data[: max(short, len(data) // 2)]))
    data = made(AT_ONCE + 777, 2)
    with Straight(tmp_path / "a.bin") as file:
        file.write(data)
    assert (tmp_path / "a.bin").read_bytes() == data


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(straight.os, "write", full)
    with pytest.raises(OSError, match="no space"), Straight(tmp_path / "a.bin") as file:
        file.write(made(2 * AT_ONCE, 3))
    with pytest.raises(OSError, match="no space"), Straight(tmp_path / "b.bin") as file:
        file.write(b"found out at its end")


@needs_straight
def test_what_fails_closes_the_file(tmp_path: Path) -> None:
    file = Straight(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="told"), file:
        raise ValueError("told")
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(file._file)
