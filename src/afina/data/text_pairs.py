"""Text documents: labelled turns (`pairs`) and running text (`plain`). Line by line, in bounded memory.

Knows nothing of JSON or tables; whether an example can be learned from is judged in `conversations.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from afina.core.messages import N_, say
from afina.data.examples import Example, Role, Turn
from afina.data.faults import Fault, not_text, shorten
from afina.data.labels import Label, Style, find_label, find_style
from afina.data.textfile import MAX_ROW, TextFile, lines, too_big

PIECE = 4000
"""Characters of one row of plain text at most; longer paragraphs are divided and nothing is lost."""
FRONT = 30
"""The first label stands within so many lines, or the text is taken as plain."""

_RULE = re.compile(r"[ \t]*(?:-[ \t]*){3,}|[ \t]*(?:\*[ \t]*){3,}|[ \t]*[_=]{3,}[ \t]*")
_HEADING = re.compile(r"#{1,6}[ \t]")


def looks_labelled(text: str) -> bool:
    """Whether the beginning of a document, `text`, reads as labelled turns rather than as running text."""
    style = find_style(text)
    found = [label for line in text.split("\n") if (label := find_label(line, style))]
    sides = {label.side for label in found}
    asked = bool(sides & {"user", "input"})
    full = [line for line in text.split("\n") if line.strip()]
    first = next((n for n, line in enumerate(full) if find_label(line, style)), None)
    if first is None or not asked or (first > FRONT and len(found) * 20 < len(full)):
        return False
    return "assistant" in sides or (first == 0 and len(found) > 1)


def _separates(line: str) -> bool:
    """Whether the line is blank or a rule such as `---`."""
    return not line.strip() or _RULE.fullmatch(line) is not None


@dataclass
class _Open:
    """A turn being read."""

    role: Role
    word: str
    parts: list[str] = field(default_factory=list)

    def turn(self) -> Turn:
        return Turn(self.role, "\n".join(self.parts).strip())


class _Reader:
    """The state between two lines."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.row = 0
        self.clear()

    def clear(self) -> None:
        self.turns: list[_Open] = []
        self.line = 0
        self.size = 0
        self.gap: list[str] = []  # blank lines and rules not yet given to anyone
        self.fault: Fault | None = None
        self.opening = ""  # the word that began the example
        self.fenced = False
        self.fresh = False  # an "Input:" has just begun, and blank lines behind it are not its own
        self.stray: list[tuple[int, str]] = []

    def feed(self, number: int, line: str, whole: bool) -> Iterator[Example | Fault]:
        """Take one line in; gives the example that ends with it, if any."""
        if _separates(line):
            self.gap.append(line)
            return
        label = find_label(line, self.style)
        if label is None or not self._counts(label):
            self._content(number, line, whole)
            return
        if self.gap and self._ends(label):
            self._drop_headings(number)
            yield from self.finish()
        if not self.turns:
            yield from self._stray_fault()
        self._begin(number, label)
        self._measure(number, line, whole)

    def _ends(self, label: Label) -> bool:
        """Whether `label`, behind a blank line or a rule, begins the next example."""
        if label.side == "assistant" or all(turn.role == "system" for turn in self.turns):
            return False
        return not (label.side == "input" and self._asks())

    def _asks(self) -> bool:
        return self.turns[-1].role == "user" and self.opening != "input"

    def _counts(self, label: Label) -> bool:
        """Whether a label word at the start of a line is a label here, and not part of an answer."""
        if not self.turns:
            return True
        if self.fenced and not (self.gap and label.word == self.opening):
            return False
        last = self.turns[-1]
        if last.role != "assistant":
            return True
        if label.side == "input":
            return self.opening == "input"
        return label.side != "assistant" or label.word == last.word

    def _begin(self, number: int, label: Label) -> None:
        self.fenced = self.fresh = False
        self.gap = []
        if not self.turns:
            self.line = number
        if label.side == "input" and self.turns and self._asks():
            self.turns[-1].parts += [label.rest] if label.rest else []
            self.fresh = True
            return
        role: Role = "user" if label.side == "input" else label.side
        if role == "user" and not any(t.role == "user" for t in self.turns):
            self.opening = "input" if label.side == "input" else label.word
        self.turns.append(_Open(role, label.word, [label.rest]))

    def _content(self, number: int, line: str, whole: bool) -> None:
        if not self.turns:
            self.gap = []
            self.stray.append((number, line[:200]) if len(self.stray) < 2 else (number, ""))
            self.stray[2:] = self.stray[-1:]
            return
        if line.lstrip().startswith("```"):
            self.fenced = not self.fenced
        if not self.fault or self.fault.code != "row_too_big":
            self.turns[-1].parts += [line] if self.fresh else [*self.gap, line]
        self.gap = []
        self.fresh = False
        self._measure(number, line, whole)

    def _measure(self, number: int, line: str, whole: bool) -> None:
        self.size += len(line) + 1
        if not whole or self.size > MAX_ROW:
            self.fault = too_big(self.row + 1, self.line)
            for turn in self.turns:
                turn.parts.clear()
        elif self.fault is None:
            self.fault = not_text(line, self.row + 1, number)

    def _drop_headings(self, number: int) -> None:
        """A heading between two examples belongs to neither."""
        parts = self.turns[-1].parts
        while len(parts) > 1 and _HEADING.match(parts[-1]) and _separates(parts[-2]):
            self.stray.append((number, parts.pop()))
            while len(parts) > 1 and _separates(parts[-1]):
                parts.pop()

    def finish(self) -> Iterator[Example | Fault]:
        """The example that was open, or why it cannot be used."""
        stray = self.stray
        if self.turns:
            self.row += 1
            turns = tuple(turn.turn() for turn in self.turns)
            yield self.fault or Example(turns, row=self.row, line=self.line)
        self.clear()
        self.stray = stray

    def _stray_fault(self) -> Iterator[Fault]:
        if self.stray:
            (first, text), (last, _) = self.stray[0], self.stray[-1]
            message = (
                say(
                    N_("Line {line} stands outside any example and is left out: “{text}”."),
                    line=first,
                    text=shorten(text, 60),
                )
                if first == last
                else say(
                    N_("Lines {line} to {last} stand outside any example and are left out: “{text}”."),
                    line=first,
                    last=last,
                    text=shorten(text, 60),
                )
            )
            yield Fault("stray_text", message, None, first, excerpt=shorten(text))
            self.stray = []


def read_pairs(source: TextFile) -> Iterator[Example | Fault]:
    """Examples out of labelled turns. A blank line or a rule ends an example when a user-side label follows."""
    reader = _Reader(find_style(source.head_text()))
    with source.open() as file:
        for number, line, whole in lines(file):
            yield from reader.feed(number, line, whole)
    yield from reader.finish()
    yield from reader._stray_fault()


def read_plain(source: TextFile) -> Iterator[Example | Fault]:
    """Paragraphs of running text, divided where they are longer than PIECE characters."""
    row = 0
    with source.open() as file:
        for line, text in _paragraphs(file):
            row += 1
            yield not_text(text, row, line) or Example(text=text, row=row, line=line)


def _paragraphs(file: Iterator[str]) -> Iterator[tuple[int, str]]:
    """(line, text) of each paragraph or piece of one; together all the text but blank lines."""
    number, start, held = 1, 1, ""
    while chunk := file.readline(PIECE):  # type: ignore[attr-defined]
        if not chunk.strip() and not (held and chunk[-1:] != "\n"):
            if held.strip():
                yield start, held.rstrip("\n")
            held = ""
        else:
            start = start if held else number
            held += chunk
        number += chunk.endswith("\n")
        while len(held) > PIECE:
            cut = _cut(held)
            yield start, held[:cut]
            start += held.count("\n", 0, cut)
            held = held[cut:]
    if held.strip():
        yield start, held.rstrip("\n")


def _cut(text: str) -> int:
    """Where to divide: behind the last line end, sentence or space of the first PIECE characters, else right there."""
    for mark in ("\n", ". ", " "):
        at = text.rfind(mark, PIECE // 2, PIECE)
        if at >= 0:
            return at + len(mark)
    return PIECE
