"""A sliding window over JSON text: one value after the other, decoded by the standard library, in bounded memory.

Says exactly where a value is broken. Knows nothing of rows or what they mean.
"""

from __future__ import annotations

import json
import re
from typing import IO, Any

from afina.core.messages import N_, Message
from afina.data.faults import Fault, Unreadable, not_text, shorten
from afina.data.textfile import MAX_ROW, too_big

CHUNK = 64 * 1024
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

NOT_JSON = N_("Line {line}, column {column}: this is not JSON.")
UNFINISHED = N_("Line {line}, column {column}: the file ends before the list or object is closed.")
AFTER_END = N_("Line {line}, column {column}: the list or object is closed, but more follows.")
TOO_DEEP = N_("Line {line}, column {column}: lists or objects are nested too deep to be read.")
TOO_MANY_DIGITS = N_("Line {line}, column {column}: a number in this row has too many digits.")
TOO_MANY_COMMAS = N_("Line {line}, column {column}: too many commas with nothing after them.")
GIVEN_UP = N_("Line {line}, column {column}: too many broken rows; the rest of the file was not read.")
LOST = N_("Line {line}, column {column}: the rest of the file could not be read after this.")
EXPLAIN: dict[str, str] = {
    "Expecting ',' delimiter": N_("Line {line}, column {column}: expected “,” or a closing bracket after a value."),
    "Expecting property name": N_("Line {line}, column {column}: expected a name in double quotes."),
    "Expecting ':' delimiter": N_("Line {line}, column {column}: expected “:” after a name."),
    "Expecting value": N_("Line {line}, column {column}: expected a value."),
    "Unterminated string": N_("Line {line}, column {column}: the text that begins here has no closing quote."),
    "Invalid control character": N_(
        "Line {line}, column {column}: a line break or control character stands inside a text; write \\n instead."
    ),
    "Invalid \\": N_("Line {line}, column {column}: a backslash must be written twice."),
}


class Window:
    """A sliding piece of the text: `at` is the next character, `line` its line."""

    def __init__(self, file: IO[str] | None, text: str = "", line: int = 1) -> None:
        self._file = file
        self.text = text
        self.at = 0
        self.line = line
        self.segment = ""
        self._before = 0  # characters of the current line that have left the window

    def more(self) -> bool:
        """Read on, at least as much as is there, and drop what is behind; False, and nothing dropped, at the end."""
        if self._file is None:
            return False
        read = self._file.read(max(CHUNK, len(self.text) - self.at))
        if not read:
            self._file = None
            return False
        cut = self.text.rfind("\n", 0, self.at)
        self._before = self.at - cut - 1 if cut >= 0 else self._before + self.at
        self.text = self.text[self.at :] + read
        self.at = 0
        return True

    def skip(self, count: int) -> None:
        """Move on by `count` characters."""
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count

    def space(self, also: str = "") -> int:
        """Skip white space and the characters of `also`; returns how many of `also` there were."""
        seen = 0
        while True:
            match = _SPACE.match(self.text, self.at)
            self.skip(match.end() - self.at if match else 0)
            if self.at < len(self.text):
                if self.text[self.at] not in also:
                    return seen
                seen += 1
                self.at += 1
            elif not self.more():
                return seen

    def peek(self) -> str:
        """The next character, "" at the end."""
        if self.at >= len(self.text):
            self.more()
        return self.text[self.at : self.at + 1]

    def matches(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """What `pattern` finds right here, after reading on where it may need more."""
        match = pattern.match(self.text, self.at)
        while match is None and len(self.text) - self.at < CHUNK and self.more():
            match = pattern.match(self.text, self.at)
        return match

    def find(self, pattern: re.Pattern[str]) -> bool:
        """Move to the next place where `pattern` matches; False, at the end of the file, when there is none."""
        while True:
            match = pattern.search(self.text, self.at)
            if match:
                self.skip(match.start() - self.at)
                return True
            self.skip(max(0, len(self.text) - self.at - 300))  # a match may begin in the last characters
            if not self.more():
                self.skip(len(self.text) - self.at)
                return False

    def value(self, row: int) -> Any:
        """The value that begins here; moves behind it and keeps its text in `segment`.

        Raises Unreadable with `bad_json`, `not_utf8` or `row_too_big`; then `at` is still where it was.
        """
        for _ in range(100):
            try:
                value, end = self._decode(row)
            except json.JSONDecodeError as error:
                if self._repair(error.pos):
                    continue
                raise Unreadable(self._explain(row, error)) from None
            except RecursionError:
                raise Unreadable(self.fault(row, TOO_DEEP)) from None
            except ValueError:
                raise Unreadable(self.fault(row, TOO_MANY_DIGITS)) from None
            self.segment = self.text[self.at : end]
            if fault := not_text(self.segment, row, self.line, self._column(self.at) - 1):
                raise Unreadable(fault)
            self.skip(end - self.at)
            return value
        raise Unreadable(self.fault(row, TOO_MANY_COMMAS))

    def _decode(self, row: int) -> tuple[Any, int]:
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or not self.more():
                    return value, end
            except json.JSONDecodeError as error:
                torn = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - 16
                if not torn:
                    raise
                if len(self.text) - self.at > MAX_ROW:
                    raise Unreadable(too_big(row, self.line)) from None
                if not self.more():
                    raise

    def _repair(self, position: int) -> bool:
        """Blank out a comma that nothing follows before a closing bracket."""
        text = self.text
        comma = position
        if text[position : position + 1] in ("}", "]"):
            comma = position - 1
            while comma > self.at and text[comma] in " \t\r\n":
                comma -= 1
        after = _SPACE.match(text, comma + 1)
        if (
            comma <= self.at
            or text[comma : comma + 1] != ","
            or not after
            or text[after.end() : after.end() + 1] not in ("}", "]")
        ):
            return False
        self.text = f"{text[:comma]} {text[comma + 1 :]}"
        return True

    def _explain(self, row: int, error: json.JSONDecodeError) -> Fault:
        template = next((text for start, text in EXPLAIN.items() if error.msg.startswith(start)), NOT_JSON)
        return self.fault(row, template, error.pos)

    def _column(self, position: int) -> int:
        cut = self.text.rfind("\n", 0, position)
        return position - cut if cut >= 0 else self._before + position + 1

    def fault(self, row: int | None, template: str, position: int | None = None) -> Fault:
        """`bad_json` at `position` of the window (here when None); `template` has {line} and {column}."""
        position = self.at if position is None else position
        line = self.line + self.text.count("\n", self.at, position)
        message = Message(template, {"line": line, "column": self._column(position)})
        start = max(self.text.rfind("\n", 0, position) + 1, position - 60)
        return Fault("bad_json", message, row, line, excerpt=shorten(self.text[start : position + 60]))
