"""Broken and hostile files, made here: name, content, the code that must be reported, and the row it must name."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq

GOOD = {"instruction": "a", "output": "b"}
LINE = json.dumps(GOOD).encode() + b"\n"
SAID = {"role": "user", "content": "q"}
TOLD = {"role": "assistant", "content": "a"}


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.json", json.dumps([GOOD]))
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("a.json")
        info.size = len(LINE)
        archive.addfile(info, io.BytesIO(LINE))
    return buffer.getvalue()


def parquet(**columns: list[object]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def stream(cut: int) -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"instruction": ["a"] * 2000, "output": [str(n) * 20 for n in range(2000)]})
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()[:cut]


def zstd(text: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(text)
    return bytes(sink.getvalue())


def messages(*turns: object, **more: object) -> bytes:
    return json.dumps({"messages": turns, **more}).encode() + b"\n"


def third(line: bytes) -> bytes:
    """The line as the third of four, the others good."""
    return LINE * 2 + line.rstrip(b"\n") + b"\n" + LINE


def third_said(*turns: object, **more: object) -> bytes:
    """The conversation as the third of four, the others good."""
    return messages(SAID, TOLD) * 2 + messages(*turns, **more) + messages(SAID, TOLD)


BROKEN: list[tuple[str, bytes, str, int | None]] = [
    ("empty.json", b"", "empty_file", None),
    ("blank.txt", b"\xef\xbb\xbf \r\n\n", "empty_file", None),
    ("list.json", b"[]", "empty_file", None),
    ("header.csv", b"question,answer\n", "empty_file", None),
    ("word.json", b"hello", "bad_json", 1),
    ("number.json", b"12", "unknown_format", None),
    ("open.json", b'[{"instruction": "a", "output": "b"}', "bad_json", None),
    ("cut.json", b'[{"instruction": "a", "output": "b"}, {"instr', "bad_json", 2),
    ("bracket.json", b"[", "bad_json", None),
    ("after.json", b'[{"instruction": "a", "output": "b"}] more', "bad_json", None),
    ("quotes.json", b"[{'instruction': 'a', 'output': 'b'}]", "bad_json", 1),
    ("newline.json", b'[{"instruction": "a\nb", "output": "b"}]', "bad_json", 1),
    ("deep.json", b"[" * 100_000, "bad_json", 1),
    ("deeper.json", b'{"a":' * 100_000, "bad_json", 1),
    ("deepest.jsonl", b'{"instruction": ' + b"[" * 50_000, "bad_json", 1),
    ("digits.json", b'[{"instruction": ' + b"9" * 10_000 + b', "output": "b"}]', "bad_json", 1),
    ("twice.jsonl", b'{"instruction": "a", "output": "b", "output": "c"}', "bad_json", 1),
    ("twice.json", b'[{"instruction": "a", "output": "b", "output": "c"}]', "bad_json", 1),
    ("two lists.json", json.dumps({"train": [GOOD], "test": [GOOD]}).encode(), "unknown_format", None),
    ("names.json", b'[{"one": "a", "two": "b"}]', "unknown_format", None),
    ("names.csv", b"one,two\na,b\n", "unknown_format", None),
    ("column.csv", b"one\na\nb\n", "unknown_format", None),
    ("quote.csv", b'question,answer\n"a,b\nc,d\n', "bad_csv", 1),
    ("after quote.csv", b'question,answer\n"a" b,c\n', "bad_csv", 1),
    ("twice.csv", b"question,answer,answer\na,b,c\n", "bad_csv", None),
    ("wide.csv", b"question,answer\na,b,c\n", "bad_csv", 1),
    ("latin.csv", "question,answer\nê,b\n".encode("latin-1"), "not_utf8", 1),
    ("latin.jsonl", '{"instruction": "ê", "output": "b"}'.encode("latin-1"), "not_utf8", 1),
    ("half.jsonl", b'{"instruction": "\\ud800", "output": "b"}', "not_utf8", 1),
    ("nul.json", b'[{"instruction": "a\0", "output": "b"}]', "binary", None),
    ("sixteen.json", json.dumps([GOOD]).encode("utf-16-le"), "not_utf8", None),
    ("noise.txt", bytes(range(256)) * 40, "binary", None),
    ("latin noise.txt", bytes(range(128, 256)) * 40, "binary", None),
    ("really.json", zipped(), "archive", None),
    ("cut.jsonl.gz", gzip.compress(json.dumps(GOOD).encode() * 50)[:-20], "bad_archive", None),
    ("bad.jsonl.gz", b"\x1f\x8b\x08\x00" + b"garbage" * 9, "bad_archive", None),
    ("bad.zst", b"\x28\xb5\x2f\xfd" + b"garbage" * 9, "bad_archive", None),
    ("bad.parquet", b"PAR1" + b"garbage" * 9 + b"PAR1", "bad_parquet", None),
    ("bad.arrow", b"ARROW1\0\0" + b"garbage" * 9, "bad_parquet", None),
    ("strings.json", b'["a", "b"]', "unknown_format", None),
    ("unpaired.sharegpt.json", b'[{"conversations": [{"from": "human", "value": "a"}]}]', "no_answer", 1),
    ("prompts.csv", b"question,id\na,1\n", "missing_field", 1),
    ("rejected.json", b'[{"prompt": "a", "chosen": "b"}]', "missing_field", 1),
    # -- the same in bigger files: the row is named, the others are read
    ("third cut.jsonl", third(b'{"instruction": "a", "out'), "bad_json", 3),
    ("third nul.jsonl", third(b'{"instruction": "a\0", "output": "b"}'), "binary", None),
    ("late nul.jsonl", LINE * 20_000 + b'{"instruction": "a\0", "output": "b"}\n', "bad_json", 20_001),
    ("third byte.jsonl", third(b'{"instruction": "\xff", "output": "b"}'), "not_utf8", 3),
    ("third half.jsonl", third(b'{"instruction": "\\udc00", "output": "b"}'), "not_utf8", 3),
    ("third key.jsonl", third(b'{"instruction": "a", "output": "b", "output": "c"}'), "bad_json", 3),
    ("third spaced.jsonl", third(b'{"instruction" : "a", "output" : "b", "output" : "c"}'), "bad_json", 3),
    ("third word.jsonl", third(b"hello"), "bad_json", 3),
    ("third list.jsonl", third(b"[1, 2]"), "wrong_type", 3),
    ("third null.jsonl", third(b"null"), "wrong_type", 3),
    ("third mark.jsonl", third(b'\xef\xbb\xbf{"instruction": 1, "output": "b"}'), "bad_json", 3),
    ("third two.jsonl", third(LINE.strip() + LINE.strip()), "bad_json", 3),
    ("third deep.jsonl", third(b'{"instruction": ' + b"[" * 5000 + b"]" * 5000 + b', "output": "b"}'), "bad_json", 3),
    ("third number.jsonl", third(b'{"instruction": "a", "output": 7}'), "wrong_type", 3),
    ("third huge.jsonl", third(b'{"instruction": "a", "output": 1e400}'), "wrong_type", 3),
    ("third digits.jsonl", third(b'{"instruction": "a", "output": ' + b"9" * 400 + b"}"), "wrong_type", 3),
    ("third nan.jsonl", third(b'{"instruction": "a", "output": NaN}'), "wrong_type", 3),
    ("third object.jsonl", third(b'{"instruction": "a", "output": {"text": "b"}}'), "wrong_type", 3),
    ("third missing.jsonl", third(b'{"instruction": "a"}'), "missing_field", 3),
    ("third none.jsonl", third(b'{"instruction": "a", "output": null}'), "missing_field", 3),
    ("third empty.jsonl", third(b'{"instruction": "a", "output": " "}'), "empty_answer", 3),
    ("third escape.jsonl", third(b'{"instruction": "C:\\dir", "output": "b"}'), "bad_json", 3),
    ("third quote.jsonl", third(b"{'instruction': 'a', 'output': 'b'}"), "bad_json", 3),
    ("third control.jsonl", third(b'{"instruction": "a\x01", "output": "b"}'), "bad_json", 3),
    ("third form.jsonl", third(messages(SAID, TOLD)), "mixed_formats", 3),
    ("third history.jsonl", third(b'{"instruction": "a", "output": "b", "history": [["x"]]}'), "wrong_type", 3),
    ("other line ends.jsonl", b"\r".join([LINE.strip(), b"{", LINE.strip()]), "bad_json", 2),
    # -- conversations
    ("role.jsonl", third_said({"role": "bot", "content": "x"}, TOLD), "unknown_role", 3),
    ("role number.jsonl", third_said({"role": 3, "content": "x"}, TOLD), "wrong_type", 3),
    ("role missing.jsonl", third_said({"content": "x"}, TOLD), "missing_field", 3),
    ("role long.jsonl", third_said({"role": "x" * 100_000, "content": "x"}, TOLD), "unknown_role", 3),
    ("content number.jsonl", third_said(SAID, {"role": "assistant", "content": 5}), "wrong_type", 3),
    ("content picture.jsonl", third_said({"role": "user", "content": [{"type": "image"}]}, TOLD), "wrong_type", 3),
    ("content missing.jsonl", third_said(SAID, {"role": "assistant"}), "missing_field", 3),
    ("turn text.jsonl", third_said("hello", TOLD), "wrong_type", 3),
    ("no turns.jsonl", third_said(), "no_answer", 3),
    ("no answer.jsonl", third_said(SAID), "no_answer", 3),
    ("weightless.jsonl", third_said(SAID, {**TOLD, "weight": 0}), "no_answer", 3),
    ("weight.jsonl", third_said(SAID, {**TOLD, "weight": "1"}), "wrong_type", 3),
    ("weight nan.jsonl", third_said(SAID, {**TOLD, "weight": float("nan")}), "wrong_type", 3),
    ("empty answer.jsonl", third_said(SAID, {"role": "assistant", "content": ""}), "empty_answer", 3),
    ("tools.jsonl", third_said(SAID, TOLD, tools="{"), "wrong_type", 3),
    ("calls.jsonl", third_said(SAID, {"role": "assistant", "content": "", "tool_calls": "f"}), "wrong_type", 3),
    ("half call.jsonl", third_said(SAID, {**TOLD, "tool_calls": [{"function": {"name": "\ud800"}}]}), "not_utf8", 3),
    ("half tool.jsonl", third_said(SAID, TOLD, tools=[{"name": "\ud800"}]), "not_utf8", 3),
    ("half name.jsonl", third_said({"role": "tool", "content": "x", "name": "\udfff"}, SAID, TOLD), "not_utf8", 3),
    ("messages text.jsonl", b'{"messages": "hello"}\n', "wrong_type", 1),
    ("messages null.jsonl", b'{"messages": null}\n', "missing_field", 1),
    ("sharegpt.json", b'[{"conversations": [{"from": "alien", "value": "a"}]}]', "unknown_role", 1),
    # -- preferences and documents
    ("chosen.jsonl", b'{"prompt": "a", "chosen": 1, "rejected": "b"}\n', "wrong_type", 1),
    ("chosen empty.jsonl", b'{"prompt": "a", "chosen": "", "rejected": "b"}\n', "empty_answer", 1),
    ("chosen turns.jsonl", b'{"chosen": [{"role": "user", "content": "q"}], "rejected": "b"}\n', "no_answer", 1),
    ("text number.jsonl", b'{"text": "a"}\n{"text": 5}\n', "wrong_type", 2),
    ("text empty.jsonl", b'{"text": "a"}\n{"text": ""}\n', "empty_answer", 2),
    # -- tables
    ("many.csv", b"question,answer\n" + b"a,b\n" * 5 + b'x,"y" z\n' + b"a,b\n", "bad_csv", 6),
    ("wide third.csv", b"question,answer\na,b\na,b\na,b,c,d\n", "bad_csv", 3),
    ("short third.csv", b"question,answer\na,b\na,b\na\n", "missing_field", 3),
    ("empty cell.csv", b"question,answer\na,b\na,\n", "empty_answer", 2),
    ("latin third.csv", "question,answer\na,b\nê,b\n".encode("latin-1"), "not_utf8", 2),
    ("columns.csv", b",".join(b"c%d" % n for n in range(1_000_000)) + b"\n1,2\n", "bad_csv", None),
    ("same columns.csv", b"question,answer," + b"x," * 100_000 + b"\na,b\n", "bad_csv", None),
    ("fields.jsonl", json.dumps({f"k{n}": n for n in range(200_000)}).encode(), "unknown_format", None),
    ("wrong column.parquet", parquet(instruction=["a"], output=[5]), "wrong_type", 1),
    ("null column.parquet", parquet(instruction=["a", "b"], output=["x", None]), "missing_field", 2),
    ("no rows.parquet", parquet(instruction=[], output=[]), "empty_file", None),
    ("half.parquet", parquet(instruction=["a"] * 999, output=["b"] * 999)[:-40], "bad_parquet", None),
    ("no tail.parquet", parquet(instruction=["a"] * 999, output=["b"] * 999)[:50], "bad_parquet", None),
    ("cut.arrows", stream(3000), "bad_parquet", None),
    # -- not data at all
    ("pickle.json", pickle.dumps([GOOD] * 50), "binary", None),
    ("pickle.jsonl", pickle.dumps({"a": "x" * 300}, protocol=0), "bad_json", 1),
    (
        "model.safetensors",
        struct.pack("<Q", 40) + b'{"w": {"dtype": "F32", "shape": [1]}}   ' + bytes(64),
        "binary",
        None,
    ),
    ("picture.txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "binary", None),
    ("book.txt", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(range(256)) * 20, "binary", None),
    ("packed.txt", tarred(), "binary", None),
    ("word.docx", zipped(), "archive", None),
    ("rows.jsonl.xz", b"\xfd7zXZ\x00" + bytes(60), "archive", None),
    ("rows.jsonl.bz2", b"BZh91AY" + bytes(60), "archive", None),
    ("sixteen big.txt", "Question: a\nAnswer: b\n".encode("utf-16-be"), "not_utf8", None),
    ("sixteen cut.json", json.dumps([GOOD]).encode("utf-16")[:-3], "bad_json", 1),
    ("nothing.jsonl.gz", gzip.compress(b""), "empty_file", None),
    ("twice.jsonl.gz", gzip.compress(gzip.compress(LINE)), "binary", None),
    ("cut.jsonl.zst", zstd(LINE * 50)[:-9], "bad_archive", None),
    ("tail.jsonl.gz", gzip.compress(LINE) + b"garbage that is no gzip", "bad_archive", None),
    ("spaces.json", b" " * 300_000, "empty_file", None),
    ("commas.json", b"[" + b"," * 100_000 + b"]", "empty_file", None),
    ("quotes open.json", b'[{"instruction": "' + b"a" * 300_000, "bad_json", 1),
    ("colons.json", b'{"a": ' * 2000 + b"1" + b"}" * 2000, "bad_json", 1),
    ("two objects.json", json.dumps({"a": [GOOD], "b": [GOOD]}).encode(), "unknown_format", None),
    ("stray.txt", b"Question: a\n\nQuestion: b\nAnswer: c\n", "no_answer", 1),
    ("answer first.txt", b"Question: a\nAnswer:\n\nQuestion: b\nAnswer: c\n", "empty_answer", 1),
]
