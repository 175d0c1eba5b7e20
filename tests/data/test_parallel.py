"""A large file of JSON lines looked through by several processes: the same findings as by one."""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path

import pytest

from afina.core.errors import AfinaError
from afina.data import checks, parallel
from afina.data.checks import check
from afina.data.readers import Source, read
from afina.data.template import ChatTokenizer
from afina.data.watch import looking, telling

WORDS = [
    "coffee",
    "rain",
    "mountain",
    "tais",
    "village",
    "road",
    "school",
    "water",
    "market",
    "house",
    "language",
    "song",
    "child",
    "river",
    "rice",
]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "LARGE", 1000)
    monkeypatch.setattr(parallel, "BLOCK", 20_000)
    monkeypatch.setattr(parallel, "PIECE", 7_000)


def lines(count: int) -> list[bytes]:
    """Rows of which some are broken in every way that a line can be."""
    chance = random.Random(7)
    out: list[bytes] = []
    for number in range(count):
        words = " ".join(chance.choices(WORDS, k=40))
        row = {"instruction": f"Question {number}?", "output": words}
        line = json.dumps(row)
        kind = number % 40
        if kind == 3:
            line = line[:-4]
        elif kind == 5:
            line = json.dumps({"messages": [{"role": "bot", "content": "x"}]})
        elif kind == 7:
            line = json.dumps({"instruction": "a"})
        elif kind == 11:
            line = out[-3].decode()
        elif kind == 13:
            line = json.dumps({**json.loads(out[-2]), "input": "more"})
        elif kind == 17:
            line = json.dumps({**row, "output": "maria.soares@gmail.com"})
        elif kind == 19:
            line = " "
        out.append(line.encode() if kind != 23 else b'{"instruction": "\xff", "output": "b"}')
    return out


@pytest.mark.parametrize(("end", "mark"), [(b"\n", b""), (b"\r\n", b"\xef\xbb\xbf"), (b"\r", b"")])
def test_the_same_report_as_by_one_process(tmp_path: Path, tiny_model: Path, end: bytes, mark: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(mark + end.join(lines(1200)) + end)
    tokenizer = ChatTokenizer.load(tiny_model)
    seen: list[tuple[int, int]] = []
    with looking(path, path.stat().st_size), telling(lambda *at: seen.append(at)):
        several = check(path, tokenizer=tokenizer, max_length=32, workers=2)
    alone = check(path, tokenizer=tokenizer, max_length=32, workers=1)
    assert several == alone
    assert several.marks == alone.marks
    codes = {group.code for group in alone.errors + alone.warnings}
    assert codes >= {
        "bad_json",
        "mixed_formats",
        "missing_field",
        "not_utf8",
        "duplicate",
        "near_duplicate",
        "too_long",
    }
    assert seen == sorted(seen)
    assert seen[-1] == (path.stat().st_size,) * 2


def test_a_line_without_end_is_dropped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MAX_ROW", 10_000)  # what is kept of a line before it is sent on
    path = tmp_path / "rows.jsonl"
    good = b'{"instruction": "a", "output": "b"}\n'
    path.write_bytes(good * 3 + b'{"instruction": "' + b"x" * 20_000_000 + b'"}\n' + good)
    report = check(path, workers=2)
    assert {group.code: group.rows for group in report.errors} in ({"bad_json": [4]}, {"row_too_big": [4]})
    assert report.rows == 5


def test_the_damaged_end_of_a_packed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "PIECE", 8192)  # what one process reads at a time
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines(2000)))[:-500])
    several, alone = (check(path, workers=workers) for workers in (2, 1))
    assert several.errors == alone.errors
    assert "bad_archive" in [group.code for group in alone.errors]


def test_what_is_looked_through_by_one(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("question,answer\n" + "a,b\n" * 1000)
    source = read(table)
    assert isinstance(source, Source)
    assert not parallel.suits(source)


@pytest.mark.parametrize("command", [["false"], [sys.executable, "-c", "import sys; sys.stdin.buffer.read(100)"]])
def test_a_process_that_dies_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setattr(parallel, "COMMAND", command)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines(200)))
    with pytest.raises(AfinaError) as died:
        check(path, workers=2)
    assert died.value.code == "check_failed"


def test_tokens_of_a_very_large_file_are_estimated_and_said_to_be(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Question {n}?", "output": " ".join(WORDS[: n % 15 + 1])} for n in range(1500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = ChatTokenizer.load(tiny_model)
    exact = check(path, tokenizer=tokenizer, max_length=24, workers=1)
    monkeypatch.setattr(checks, "COUNTED", path.stat().st_size - 1)
    monkeypatch.setattr(checks, "SAMPLED", path.stat().st_size // 4)
    about = check(path, tokenizer=tokenizer, max_length=24, workers=1)
    assert (exact.estimated, about.estimated) == (False, True)
    assert about.as_json()["estimated"]
    for one, other in ((exact.tokens, about.tokens), (exact.answer_tokens, about.answer_tokens)):
        assert one is not None
        assert other == pytest.approx(one, rel=0.05)
    assert (about.rows, about.errors) == (exact.rows, exact.errors)
