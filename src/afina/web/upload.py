"""Receiving a file: streamed from the socket to the disk, never whole in memory.

The multipart body is taken apart as it comes; the one part called `file` goes into a temporary file in the home
folder, on the disk where it will stay, and is handed over when it is complete.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.core.paths import Home

FIELD = "file"


@dataclass
class Upload:
    """A file that has arrived: what it was called, and its content, open at its beginning."""

    name: str
    file: IO[bytes]


@dataclass
class _Parts:
    """What the parser has seen. Bytes of the wanted part wait in `fresh` until they are written."""

    fresh: list[bytes] = field(default_factory=list)
    name: str | None = None
    wanted: bool = False
    ended: bool = False
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""

    def begin(self) -> None:
        """A part begins."""
        self.wanted = False
        self._disposition = b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of its value."""
        self._value += data[start:end]

    def header_end(self) -> None:
        """The header is complete."""
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def headers_finished(self) -> None:
        """All headers of the part are known: is it the one?"""
        _, options = parse_options_header(self._disposition)
        is_file = options.get(b"name") == FIELD.encode() and b"filename" in options
        if is_file and self.name is None:
            self.name = options[b"filename"].decode("utf-8", "replace")
            self.wanted = True

    def data(self, data: bytes, start: int, end: int) -> None:
        """A piece of the part's content."""
        if self.wanted:
            self.fresh.append(data[start:end])

    def end(self) -> None:
        """The whole body was well-formed."""
        self.ended = True


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[Upload]:
    """The uploaded file; it is gone when the block ends. Raises AfinaError `bad_upload`."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise _bad_upload()
    parts = _Parts()
    home: Home = request.app.state.home
    with tempfile.TemporaryFile(dir=home.state) as file:
        try:
            parser = _parser(boundary, parts)
            async for chunk in request.stream():
                parser.write(chunk)
                if parts.fresh:
                    await run_in_threadpool(file.writelines, parts.fresh)
                    parts.fresh.clear()
            parser.finalize()
        except FormParserError:
            raise _bad_upload() from None
        if not parts.ended or parts.name is None:
            raise _bad_upload()
        file.seek(0)
        yield Upload(parts.name, file)


def _parser(boundary: bytes, parts: _Parts) -> MultipartParser:
    return MultipartParser(
        boundary,
        {
            "on_part_begin": parts.begin,
            "on_header_field": parts.header_name,
            "on_header_value": parts.header_value,
            "on_header_end": parts.header_end,
            "on_headers_finished": parts.headers_finished,
            "on_part_data": parts.data,
            "on_end": parts.end,
        },
    )


def _bad_upload() -> AfinaError:
    return AfinaError(
        Problem(
            "bad_upload",
            say(N_("No file came with this request.")),
            say(N_("Send the file as multipart/form-data, in the field “file”.")),
            field=FIELD,
        )
    )
