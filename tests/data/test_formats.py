"""Round trips: examples written in each format read back the same, whatever stands in them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afina.data.examples import Example, Turn
from afina.data.faults import Fault
from afina.data.labels import find_label
from afina.data.readers import read

QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

# No lone surrogates (they are no text) and no NUL (no table holds it); \r is a line end wherever text is read.
characters = st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\t")
texts = st.text(characters, min_size=1, max_size=60).filter(lambda text: bool(text.strip()))
lines = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=40).map(str.strip)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=8)


def conversation(*said: tuple[str, str]) -> Example:
    return Example(tuple(Turn(role, content) for role, content in said))  # type: ignore[arg-type]


def contents(items: list[Example | Fault]) -> list[dict[str, Any]]:
    """The canonical forms; fails on any error (warnings are none of a round trip's business)."""
    faults = [item for item in items if isinstance(item, Fault) and item.severity == "error"]
    assert not faults, [str(fault.message) for fault in faults]
    return [item.as_json() for item in items if isinstance(item, Example)]


def expect(path: Path, form: str, examples: list[Example]) -> None:
    source = read(path)
    assert source.format == form
    assert contents(list(source)) == [example.as_json() for example in examples]
    assert [item.row for item in source if isinstance(item, Example)] == list(range(1, len(examples) + 1))


def as_array(rows: list[Any]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1)


def as_compact(rows: list[Any]) -> str:
    return json.dumps(rows)


def as_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_object(rows: list[Any]) -> str:
    return json.dumps({"version": 1, "data": rows, "note": "x"}, indent=2)


def as_careless(rows: list[Any]) -> str:
    return "[\n" + "".join(json.dumps(row)[:-1] + ",},\n" for row in rows) + "]\n\n"


def as_values(rows: list[Any]) -> str:
    return "\n".join(json.dumps(row, indent=2) for row in rows)


WRITERS = [as_array, as_compact, as_lines, as_object, as_careless, as_values]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]


@QUICK
@given(rows=pairs, write=st.sampled_from(WRITERS), encoding=st.sampled_from(ENCODINGS), crlf=st.booleans())
def test_alpaca_in_every_kind_of_json(
    tmp_path: Path, rows: list[tuple[str, str]], write: Callable[..., str], encoding: str, crlf: bool
) -> None:
    text = write([{"instruction": one, "input": "", "output": two} for one, two in rows])
    path = tmp_path / "rows.json"
    path.write_bytes((text.replace("\n", "\r\n") if crlf else text).encode(encoding))
    expect(path, "alpaca", [conversation(("user", one), ("assistant", two)) for one, two in rows])


def test_alpaca_with_everything(tmp_path: Path) -> None:
    row = {
        "instruction": "Add",
        "input": "1, 2",
        "output": "3",
        "system": "Be short",
        "history": [["Hi", "Hello"], ["You?", "Fine"]],
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "system": None, "history": None, "input": None}))
    expect(
        path,
        "alpaca",
        [
            conversation(
                ("system", "Be short"),
                ("user", "Hi"),
                ("assistant", "Hello"),
                ("user", "You?"),
                ("assistant", "Fine"),
                ("user", "Add\n1, 2"),
                ("assistant", "3"),
            ),
            conversation(("user", "Add"), ("assistant", "3")),
        ],
    )


roles = st.sampled_from(["user", "assistant", "tool"])
turns = st.lists(st.builds(Turn, roles, texts, st.sampled_from([1.0, 0.0])), max_size=5).map(
    lambda said: (*said, Turn("user", "so?"), Turn("assistant", "yes"))
)


@QUICK
@given(rows=st.lists(turns, min_size=1, max_size=5), write=st.sampled_from(WRITERS))
def test_messages(tmp_path: Path, rows: list[tuple[Turn, ...]], write: Callable[..., str]) -> None:
    examples = [Example((Turn("system", "s"), *row), tools=({"name": "t"},)) for row in rows]
    path = tmp_path / "rows.json"
    path.write_text(write([example.as_json() for example in examples]), encoding="utf-8")
    expect(path, "messages", examples)


def test_messages_with_parts_developer_and_tool_calls(tmp_path: Path) -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    row = {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "value": "short"}]},
            {"role": "User", "content": "2+2?"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
            {"role": "assistant", "content": "4", "weight": 1},
        ]
    }
    path = tmp_path / "rows.txt"  # the extension is only a hint
    path.write_text(json.dumps(row))
    expect(
        path,
        "messages",
        [
            Example(
                (
                    Turn("system", "Be short"),
                    Turn("user", "2+2?"),
                    Turn("assistant", "", tool_calls=tuple(calls)),
                    Turn("tool", "4", tool_call_id="1"),
                    Turn("assistant", "4"),
                )
            )
        ],
    )


@QUICK
@given(rows=st.lists(turns, min_size=1, max_size=5))
def test_sharegpt(tmp_path: Path, rows: list[tuple[Turn, ...]]) -> None:
    words = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
    plain = [tuple(Turn(turn.role, turn.content) for turn in row) for row in rows]
    data = [{"id": 1, "conversations": [{"from": words[t.role], "value": t.content} for t in row]} for row in plain]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(data))
    expect(path, "sharegpt", [Example(row) for row in plain])


HEADERS = [
    ("prompt", "completion"),
    ("Question", "Answer"),
    ("Pergunta", "Resposta"),
    ("Instrução", "Saída"),
    ("Pertanyaan", "Jawaban"),
    ("input", "output"),
    ("instruction", "response"),
]


@QUICK
@given(
    rows=pairs,
    names=st.sampled_from(HEADERS),
    delimiter=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(ENCODINGS),
    extension=st.sampled_from(["csv", "tsv", "txt"]),
)
def test_tables_of_text(
    tmp_path: Path, rows: list[tuple[str, str]], names: tuple[str, str], delimiter: str, encoding: str, extension: str
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *rows])
    path = tmp_path / f"rows.{extension}"
    path.write_bytes(buffer.getvalue().encode(encoding))
    expect(path, "table", [conversation(("user", one), ("assistant", two)) for one, two in rows])


@QUICK
@given(rows=pairs, kind=st.sampled_from(["parquet", "arrow", "stream"]))
def test_columns(tmp_path: Path, rows: list[tuple[str, str]], kind: str) -> None:
    table = pa.table({"instruction": [one for one, _ in rows], "output": [two for _, two in rows]})
    path = tmp_path / "rows.data"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        opened = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as file, opened(file, table.schema) as writer:
            writer.write_table(table)
    expect(path, "alpaca", [conversation(("user", one), ("assistant", two)) for one, two in rows])


def test_conversations_in_parquet(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pq.write_table(pa.table({"messages": [said, said[:1] + said]}), tmp_path / "rows.parquet")
    found = contents(list(read(tmp_path / "rows.parquet")))
    assert found == [{"messages": said}, {"messages": [said[0], *said]}]


@QUICK
@given(rows=st.lists(texts, min_size=1, max_size=8))
def test_text_rows(tmp_path: Path, rows: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines([{"text": row} for row in rows]), encoding="utf-8")
    expect(path, "text", [Example(text=row) for row in rows])


def test_preference(tmp_path: Path) -> None:
    prompt, good, bad = Turn("user", "a"), Turn("assistant", "good"), Turn("assistant", "bad")
    rows = [
        {"prompt": "a", "chosen": "good", "rejected": "bad"},
        {"prompt": [prompt.as_json()], "chosen": [good.as_json()], "rejected": [bad.as_json()]},
        {"prompt": "a", "chosen": [prompt.as_json(), good.as_json()], "rejected": [prompt.as_json(), bad.as_json()]},
        {"chosen": [prompt.as_json(), good.as_json()], "rejected": [prompt.as_json(), bad.as_json()]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(as_lines(rows))
    expect(path, "preference", [Example((prompt,), chosen=(good,), rejected=(bad,))] * 4)


def test_prompt_and_completion_as_messages(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]))
    expect(path, "table", [conversation(("user", "a"), ("assistant", "b"))])


def test_tabs_without_quoting(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('question\tanswer\nWhat\t"quoted\n"How" so\t"yes" he said\n')
    expect(
        path,
        "table",
        [
            conversation(("user", "What"), ("assistant", '"quoted')),
            conversation(("user", '"How" so'), ("assistant", '"yes" he said')),
        ],
    )


def test_a_column_more_belongs_to_the_question(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,context,answer,id\nWhere?,In Dili.,There.,7\nWho?,,Me.,8\n")
    expect(
        path,
        "table",
        [
            conversation(("user", "Where?\nIn Dili."), ("assistant", "There.")),
            conversation(("user", "Who?"), ("assistant", "Me.")),
        ],
    )


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_compressed(tmp_path: Path, packing: str) -> None:
    text = as_lines([{"instruction": "a", "output": "b"}]).encode()
    path = tmp_path / f"rows.jsonl.{packing}"
    if packing == "gz":
        path.write_bytes(gzip.compress(text))
    else:
        with pa.OSFile(str(path), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as packed:
            packed.write(text)
    expect(path, "alpaca", [conversation(("user", "a"), ("assistant", "b"))])


@QUICK
@given(rows=pairs)
def test_canonical_form_reads_back(rows: list[tuple[str, str]]) -> None:
    for one, two in rows:
        example = Example((Turn("user", one), Turn("assistant", two, 0.0)), tools=({"a": 1},))
        assert Example.from_json(json.loads(example.line_of_json())) == example


@QUICK
@given(text=st.text(characters, max_size=12000))
def test_plain_text_loses_nothing_but_blank_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "book.txt"
    path.write_text("It was a dark night.\n" + text, encoding="utf-8")
    source = read(path)
    if source.format != "plain":  # what hypothesis wrote looks like something else
        return
    read_back = "".join(example["text"] for example in contents(list(source)))
    assert "".join(read_back.split()) == "".join(path.read_text(encoding="utf-8").split())
    assert all(len(example.text or "") <= 4000 for example in source if isinstance(example, Example))


def harmless(text: str) -> bool:
    """Whether a text can stand in a document of labelled pairs without looking like its marks."""
    rows = text.split("\n")
    return not any(find_label(row) or not row.strip(" \t-*_=") or row.lstrip().startswith(("#", "```")) for row in rows)


answers = st.lists(lines.filter(lambda text: bool(text) and harmless(text)), min_size=1, max_size=4).map("\n\n".join)
questions = lines.filter(lambda text: bool(text) and harmless(text))


@QUICK
@given(
    rows=st.lists(st.tuples(questions, answers), min_size=1, max_size=6),
    style=st.sampled_from(
        [
            ("Question: ", "Answer: "),
            ("### Instruction:\n", "### Response:\n"),
            ("**Pergunta:** ", "**Resposta:** "),
            ("uzuáriu: ", "ASISTENTE:\n"),
            ("Pertanyaan 3: ", "Jawaban 3: "),
            ("Q: ", "A: "),
            ("P: ", "R: "),
        ]
    ),
    between=st.sampled_from(["\n\n", "\n\n\n", "\n---\n", "\n\n---\n\n"]),
    encoding=st.sampled_from(ENCODINGS),
)
def test_labelled_pairs(
    tmp_path: Path, rows: list[tuple[str, str]], style: tuple[str, str], between: str, encoding: str
) -> None:
    text = between.join(f"{style[0]}{one}\n{style[1]}{two}" for one, two in rows)
    path = tmp_path / "rows.md"
    path.write_bytes(text.encode(encoding))
    expect(path, "pairs", [conversation(("user", one.strip()), ("assistant", two.strip())) for one, two in rows])
