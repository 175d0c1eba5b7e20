"""Broken and hostile files: always a named fault, never a traceback, never unbounded memory or time."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afina.core.errors import AfinaError
from afina.data.checks import check
from afina.data.examples import Example
from afina.data.faults import MANY, REMEDIES, Fault
from afina.data.readers import read
from tests.data.corpus import BROKEN, GOOD, zstd

QUICK = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.parametrize(("name", "content", "code", "row"), BROKEN, ids=[case[0] for case in BROKEN])
def test_each_is_named(tmp_path: Path, name: str, content: bytes, code: str, row: int | None) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    started = time.process_time()
    report = check(path)
    assert time.process_time() - started < 5
    found = {group.code: group for group in report.errors}
    assert code in found
    assert found[code].details[0].row == row
    for group in report.errors + report.warnings + report.notes:
        assert str(group.message)
        assert str(group.remedy)
        json.dumps(group.as_json())
    json.dumps(report.pack())


def test_there_are_enough_of_them() -> None:
    names = [case[0] for case in BROKEN]
    assert len(set(names)) == len(names) > 100


@pytest.mark.parametrize("name", [case[0] for case in BROKEN if case[3] == 3])
def test_one_bad_row_costs_no_other(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(next(case[1] for case in BROKEN if case[0] == name))
    read_rows = [item.row for item in read(path) if isinstance(item, Example)]
    assert set(read_rows) - {1, 2, 4} == set()
    assert {1, 2} <= set(read_rows)


def test_every_code_has_its_remedy() -> None:
    assert set(MANY) <= set(REMEDIES)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(AfinaError, match="no file") as missing:
        read(tmp_path / "nothing.json")
    assert (missing.value.code, missing.value.kind) == ("not_found", "not_found")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(AfinaError) as pipe:
        check(tmp_path / "pipe.jsonl")
    assert pipe.value.code == "not_a_file"
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(AfinaError) as loop:
        check(tmp_path / "loop.jsonl")
    assert loop.value.code == "not_found"


def test_one_broken_row_hides_no_other(tmp_path: Path) -> None:
    rows = [json.dumps({"instruction": f"q{n}", "output": f"a{n}"}) for n in range(10)]
    rows[3] = rows[3].replace('"output"', "output")
    rows[6] = rows[6][:-2]
    for text in ("\n".join(rows), "[\n" + ",\n".join(rows) + "\n]", "[" + ", ".join(rows) + "]"):
        path = tmp_path / "rows.json"
        path.write_text(text)
        items = list(read(path))
        assert [item.row for item in items if isinstance(item, Fault) and item.code == "bad_json"] == [4, 7]
        assert [item.row for item in items if isinstance(item, Example)] == [1, 2, 3, 5, 6, 8, 9, 10]


def test_the_place_of_an_error_in_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"instruction": "a", "output": "b"},\n  {"instruction": "a" "output": "b"}\n]')
    assert str(check(path).errors[0].message) == "Line 3, column 23: expected “,” or a closing bracket after a value."


@QUICK
@given(content=st.binary(max_size=400), name=st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.txt", "a.gz", "a"]))
def test_no_bytes_do_harm(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    check(path).as_json()


MARKS = """{"instruction": "a", "output": "b"}|{"messages": [|{"role": "user", "content": "x"}|]}|[|]|{|}|,|"|\\|:|null|1e999
|NaN|\\ud800|Question: x|A:|---|### Input|prompt,answer|a;b;c|```|text|é"""
fragments = st.sampled_from([*MARKS.split("|"), "\ufeff", "\r", "\n", "\n\n", "\0", "\x85", "\u2028"])


@QUICK
@given(parts=st.lists(fragments, max_size=30), name=st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.txt"]))
def test_no_mixture_of_marks_does_harm(tmp_path: Path, parts: list[str], name: str) -> None:
    path = tmp_path / name
    path.write_text("".join(parts), encoding="utf-8", newline="")
    check(path).as_json()


@settings(QUICK, max_examples=50)
@given(
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=10),
    kind=st.sampled_from(["parquet", "arrow", "stream", "gz"]),
)
def test_damaged_binaries_do_no_harm(tmp_path: Path, places: list[tuple[float, int]], kind: str) -> None:
    table = pa.table({"instruction": ["a"] * 20, "output": [f"b{n}" for n in range(20)]})
    path = tmp_path / "rows"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "gz":
        path.write_bytes(gzip.compress(json.dumps(table.to_pylist()).encode()))
    else:
        opened = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as file, opened(file, table.schema) as writer:
            writer.write_table(table)
    content = bytearray(path.read_bytes())
    for place, byte in places:
        content[min(int(place * len(content)), len(content) - 1)] = byte
    path.write_bytes(content)
    check(path).as_json()


def test_a_bomb_in_zstandard(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.zst"
    path.write_bytes(zstd(b'{"text": "a"}\n' + b" " * 100_000_000))
    assert "too_big" in [group.code for group in check(path).errors]


@pytest.mark.parametrize("lie", [False, True])
def test_a_bomb_is_not_unpacked(tmp_path: Path, lie: bool) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    packed = gzip.compress(b'{"text": "a"}\n' + b" " * 100_000_000, 9)
    path.write_bytes(packed[:-4] + b"\0\0\0\0" if lie else packed)
    started = time.monotonic()
    assert "too_big" in [group.code for group in check(path).errors]
    assert time.monotonic() - started < 15


def test_a_row_of_fifty_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    huge = '{"instruction": "a", "output": "' + "x" * 50_000_000 + '"}\n'
    path.write_text(huge + json.dumps(GOOD) + "\n")
    items = list(read(path))
    assert [item.code for item in items if isinstance(item, Fault)] == ["row_too_big"]
    assert [item.row for item in items if isinstance(item, Example)] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_memory_stays_bounded(tmp_path: Path, kind: str) -> None:
    """30 MB are checked with less than 30 MB more than a small file takes."""
    path = tmp_path / f"big.{kind}"
    answer = "word " * 1000
    with path.open("w") as file:
        file.write({"json": "[\n", "csv": "question,answer\n"}.get(kind, ""))
        for number in range(6_000):
            row = json.dumps({"instruction": f"q{number}", "output": answer})
            forms = {"jsonl": row + "\n", "json": f"{row},\n", "csv": f"q{number},{answer}\n"}
            file.write(forms.get(kind, f"Question: q{number}\nAnswer: {answer}\n\n"))
        file.write("]" if kind == "json" else "")
    small = tmp_path / f"small.{kind}"
    small.write_text("question,answer\na,b\n")
    assert peak(path) - peak(small) < 30_000_000


def peak(path: Path) -> int:
    code = (
        "import resource, sys; from pathlib import Path; from afina.data.checks import check;"
        "report = check(Path(sys.argv[1])); assert not [g for g in report.errors if g.code != 'bad_json'], report;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(done.stdout) * unit
