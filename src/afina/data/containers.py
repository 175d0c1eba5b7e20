"""What kind of file it is, told by its first bytes: JSON, table, labelled text, plain text, or nothing that can be read.

The extension is only a hint. Knows nothing of rows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import orjson

from afina.core.messages import N_, say
from afina.data.faults import Fault
from afina.data.formats import guess, names_of
from afina.data.tables import find_dialect, header
from afina.data.text_pairs import looks_labelled
from afina.data.textfile import TextFile

Container = Literal["json", "jsonl", "csv", "parquet", "arrow", "arrow_stream", "pairs", "plain", "version"]

_JSON_START = re.compile(r"\[\s*(?:[\[{\]\"]|$)|\{\s*(?:[\"'}]|$)")
_MAGIC: list[tuple[bytes, str]] = [
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "rar"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
]


def find_container(file: TextFile) -> tuple[Container | None, Fault | None]:
    """What kind of file it is; a fault when it is none that can be read."""
    head = file.head
    if file.compression is None:
        if head.startswith(b"PAR1"):
            return "parquet", None
        if head.startswith(b"ARROW1"):
            return "arrow", None
        if head.startswith(b"\xff\xff\xff\xff") and len(head) > 8:
            return "arrow_stream", None
    packed = next((name for magic, name in _MAGIC if head.startswith(magic)), None)
    if packed:
        return None, Fault("archive", say(N_("This is an archive or office file ({kind}), not text."), kind=packed))
    if file.encoding == "utf-8" and _halves(head):
        message = say(N_("This seems to be UTF-16 text without the mark at its beginning that says so."))
        return None, Fault("not_utf8", message, line=1)
    if file.encoding == "utf-8" and b"\0" in head:
        return None, Fault("binary", say(N_("This is not a text file: it holds bytes that no text holds.")))
    text = file.head_text()
    if not text.strip("\ufeff \t\r\n\0"):
        return None, Fault("empty_file", say(N_("There is nothing in the file.")))
    if text.count("\ufffd") + sum(0xDC00 <= ord(c) <= 0xDCFF for c in text) > len(text) // 5:
        return None, Fault("binary", say(N_("This is not a text file: it holds bytes that no text holds.")))
    return _text_container(text, _hint(file.path)), None


def _halves(head: bytes) -> bool:
    """Whether every other byte is 0 and hardly one of the others, as in UTF-16 text of Latin letters."""
    one, two = head[:4000:2], head[1:4000:2]
    zeros = sorted((one.count(0), two.count(0)))
    return len(two) > 3 and zeros[1] > 0.8 * len(two) and zeros[0] < 0.05 * len(two)


def _hint(path: Path) -> str:
    """The extension in lower case, without that of the compression."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return name.rpartition(".")[2] if "." in name else ""


def _text_container(text: str, hint: str) -> Container:
    start = text.lstrip("\ufeff \t\r\n")
    if _JSON_START.match(start):
        return _json_kind(start, hint in ("jsonl", "ndjson"))
    if hint in ("jsonl", "ndjson") or (hint == "json" and not looks_labelled(text)):
        return "jsonl" if hint != "json" or any(_is_object(line) for line in text.split("\n")[:50]) else "json"
    if hint in ("csv", "tsv") or _is_table(text):
        return "csv"
    return "pairs" if looks_labelled(text) else "plain"


def _is_table(text: str) -> bool:
    """Whether the first line names the columns of a format. Prose that only happens to hold a comma does not."""
    names = header(text, find_dialect(text, complete=False))
    return (
        len(names) > 1 and all(len(name) < 60 for name in names) and guess(names_of(dict.fromkeys(names))) is not None
    )


def _json_kind(text: str, lines_expected: bool) -> Container:
    """One value a line, or a document. `text` begins with its bracket."""
    if text[0] == "[":
        return "json"
    lines = [line for line in text.split("\n")[:50] if line.strip()]
    begun = [line for line in lines if line.startswith("{") and line.strip() != "{"]
    if lines_expected and begun and begun[0] is lines[0]:
        return "jsonl"
    if len(begun) < 2:
        return "jsonl" if len(lines) == 1 and _is_object(lines[0]) and not _wraps(lines[0]) else "json"
    return "jsonl" if any(_is_object(line) for line in begun) or len(begun) == len(lines) else "json"


def _is_object(line: str) -> bool:
    try:
        return isinstance(orjson.loads(line.strip().removesuffix(",")), dict)
    except ValueError:
        return False


def _wraps(line: str) -> bool:
    value = orjson.loads(line.strip().removesuffix(","))
    return guess(names_of(value)) is None
