"""Files as text: compression, encoding and line ends found by looking, read in bounded memory.

A byte that does not decode becomes the lone surrogate U+DC00 + byte, so that one bad byte costs one row and not the file;
`faults.not_text` finds it again. Knows nothing of rows.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.data.faults import Fault, Unreadable
from afina.data.watch import Meter

HEAD = 256 * 1024
MAX_ROW = 16 * 1024 * 1024
"""Characters of one row at most; what is longer is named and skipped."""
FREE = 64 * 1024 * 1024
MAX_RATIO = 200
"""A compressed file may grow to FREE bytes, or to MAX_RATIO times its size, whichever is more."""

Compression = Literal["gzip", "zstd"]

_BOMS: list[tuple[bytes, str]] = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("afina-mark", _mark)


@dataclass(frozen=True)
class TextFile:
    """A file, how it is compressed and in what encoding its text is; `head` is its first bytes, decompressed."""

    path: Path
    compression: Compression | None
    encoding: str
    head: bytes

    def open(self) -> io.TextIOWrapper:
        """The text from its beginning, every line ending in "\\n". Raises Unreadable while reading."""
        return io.TextIOWrapper(self.open_bytes(), self.encoding, "afina-mark", newline=None)

    def open_bytes(self) -> io.BufferedReader:
        """The bytes from the beginning, decompressed. Raises Unreadable while reading."""
        return io.BufferedReader(_Guarded(self.path, self.compression), 1 << 18)

    def head_text(self) -> str:
        """The first text, without a last character that the cut has halved."""
        decoder = codecs.getincrementaldecoder(self.encoding)("afina-mark")
        text = decoder.decode(self.head, final=len(self.head) < HEAD)
        return text.replace("\r\n", "\n").replace("\r", "\n")


def look(path: Path) -> TextFile:
    """Open `path` once to see what it is. Raises AfinaError (`not_found`, `not_a_file`, `cannot_read`), Unreadable."""
    if not path.exists():
        raise _refuse("not_found", say(N_("There is no file “{name}”."), name=path.name), path)
    if not path.is_file():
        raise _refuse("not_a_file", say(N_("“{name}” is not a file."), name=path.name), path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        message = say(N_("“{name}” cannot be read: {reason}."), name=path.name, reason=error.strerror or str(error))
        raise _refuse("cannot_read", message, path) from None
    compression: Compression | None = None
    size = path.stat().st_size
    if start[:2] == b"\x1f\x8b":
        compression = "gzip"
    elif start == b"\x28\xb5\x2f\xfd":
        compression = "zstd"
    if compression == "gzip" and max(FREE, MAX_RATIO * size) < _promised(path) < 1100 * size:  # 1032 is gzip's best
        with _Guarded(path, compression) as raw:
            while raw.read(1 << 20):
                pass
    with io.BufferedReader(_Guarded(path, compression), 1 << 16) as raw:
        head = raw.read(HEAD)
    encoding = next((name for bom, name in _BOMS if head.startswith(bom)), "utf-8")
    return TextFile(path, compression, encoding, head)


def _refuse(code: str, message: Any, path: Path) -> AfinaError:
    problem = Problem(code, message, say(N_("Check the name and the folder.")), "path", path.name)
    return AfinaError(problem, "not_found" if code == "not_found" else "wrong_input")


class _Guarded(io.RawIOBase):
    """The decompressed bytes of a file; damage and bombs become `Unreadable`, never more memory."""

    def __init__(self, path: Path, compression: Compression | None) -> None:
        super().__init__()
        self._limit = None if compression is None else max(FREE, MAX_RATIO * path.stat().st_size)
        self._count = 0
        self._raw = path.open("rb", buffering=0)
        self._meter = Meter(self._raw)
        self._under: IO[bytes] = _decompressed(self._raw, compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._under.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            message = say(N_("The file cannot be read to its end: {reason}."), reason=reason)
            raise Unreadable(Fault("bad_archive", message)) from None
        self._count += len(data)
        self._meter.look()
        if self._limit is not None and self._count > self._limit:
            raise Unreadable(_bomb(self._limit))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        for file in (getattr(self, "_under", None), getattr(self, "_raw", None)):
            if file is not None:
                file.close()
        super().close()


def _bomb(limit: int) -> Fault:
    message = say(N_("Unpacked, the file is more than {size} MB; that is no ordinary text."), size=limit >> 20)
    return Fault("too_big", message)


def _promised(path: Path) -> int:
    """The unpacked size that a gzip file gives in its last four bytes: a reason to look before rows are made of it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        return int.from_bytes(file.read(4), "little")


def _decompressed(raw: io.FileIO, compression: Compression | None) -> IO[bytes]:
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(raw, "rb"))
    if compression == "zstd":
        import pyarrow

        return cast(IO[bytes], pyarrow.CompressedInputStream(raw, "zstd"))
    return raw


def lines(file: IO[str], limit: int = MAX_ROW) -> Iterator[tuple[int, str, bool]]:
    """(number, line without its end, whole): a line longer than `limit` comes as its beginning only, whole = False."""
    number = 0
    while text := file.readline(limit):
        number += 1
        if text.endswith("\n"):
            yield number, text[:-1], True
        elif len(text) < limit:
            yield number, text, True
        else:
            rest = file.readline(limit)
            whole = rest in ("", "\n")
            while rest and not rest.endswith("\n"):
                rest = file.readline(limit)
            yield number, text, whole


def too_big(row: int | None, line: int | None) -> Fault:
    """A row longer than `MAX_ROW` characters."""
    message = say(N_("Row {row} is longer than {size} million characters."), row=row, size=MAX_ROW // 1_000_000)
    return Fault("row_too_big", message, row, line)
