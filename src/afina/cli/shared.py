"""What every command shares: the options `--home` and `--json`, and the one way of printing."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from afina.core.errors import AfinaError
from afina.core.messages import N_, Message, say
from afina.core.paths import Home, find_home
from afina.data.watch import telling
from afina.i18n import from_environment, translator

SOON = 0.7
"""Seconds a look may take before anything is said of it."""

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="FOLDER", help="The home folder (AFINA_HOME, else ~/afina).", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]


def home_folder(given: Path | None) -> Home:
    """The home a command works in; creates nothing."""
    return find_home(given)


class Out:
    """Prints in the reader's language, or as JSON. Results go to stdout, everything else to stderr."""

    def __init__(self, as_json: bool = False, lang: str = "en") -> None:
        self.as_json = as_json
        self.lang = lang
        self._speaker = translator(lang) if lang != "en" else None

    @classmethod
    def for_arguments(cls, arguments: Sequence[str]) -> Out:
        """For a command line that has not been parsed yet (and may be faulty)."""
        return cls("--json" in arguments, from_environment(os.environ))

    @classmethod
    def of(cls, as_json: bool) -> Out:
        """For a command that knows whether JSON is wanted."""
        return cls(as_json, from_environment(os.environ))

    @property
    def is_terminal(self) -> bool:
        """Whether a person is likely to watch stdout."""
        return sys.stdout.isatty() and not self.as_json

    def say(self, message: Message) -> str:
        """A sentence in the reader's language."""
        return self._speaker.write(message) if self._speaker else str(message)

    def text(self, text: str) -> str:
        """A text without values in the reader's language."""
        return self._speaker.gettext(text) if self._speaker else text

    def line(self, text: str | Message = "") -> None:
        """A line on stdout."""
        words = self.say(text) if isinstance(text, Message) else text
        sys.stdout.write(words + "\n")
        sys.stdout.flush()

    def note(self, text: str | Message) -> None:
        """A line on stderr that is no error; nothing with `--json`."""
        if not self.as_json:
            sys.stderr.write((self.say(text) if isinstance(text, Message) else text) + "\n")
            sys.stderr.flush()

    def json(self, value: Any) -> None:
        """One line of JSON on stdout."""
        sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
        sys.stdout.flush()

    def error(self, error: AfinaError) -> None:
        """Every problem on stderr: a sentence and its remedy each, or one JSON object."""
        if self.as_json:
            sys.stderr.write(json.dumps(error.as_json(self.say), ensure_ascii=False) + "\n")
        else:
            for problem in error.problems:
                remedy = f" {self.say(problem.remedy)}" if problem.remedy else ""
                sys.stderr.write(f"{self.say(problem.message)}{remedy}\n")
        sys.stderr.flush()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Columns that line up; on a terminal with a bold head. Empty cells show a dash."""
        heads = [self.text(column) for column in columns]
        cells = [[("–" if cell is None or cell == "" else str(cell)) for cell in row] for row in rows]
        if not self.is_terminal:
            widths = [max(len(line[at]) for line in [heads, *cells]) for at in range(len(heads))]
            for line in [heads, *cells]:
                self.line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        table = Table(*heads, box=SIMPLE_HEAD, pad_edge=False)
        for line in cells:
            table.add_row(*line)
        Console().print(table)


@contextmanager
def looking(out: Out) -> Iterator[None]:
    """Say on a terminal how far a look through a large file is, as soon as it takes a moment; nothing with `--json`."""
    if out.as_json or not sys.stderr.isatty():
        yield
        return
    begun, shown = time.monotonic(), ""

    def show(done: int, total: int) -> None:
        nonlocal shown
        share = f"{100 * done // max(1, total)}"
        if share != shown and time.monotonic() - begun > SOON:
            sys.stderr.write("\r" + out.say(say(N_("Looking through the file: {share} %"), share=share)))
            sys.stderr.flush()
            shown = share

    with telling(show):
        try:
            yield
        finally:
            if shown:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()


def duration(seconds: float | None) -> str | None:
    """Seconds as people say them: 45 s, 2 min 10 s, 3 h 5 min."""
    if seconds is None:
        return None
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float | None) -> str | None:
    """Bytes as people say them, in powers of ten: 269 MB."""
    if count is None:
        return None
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.{0 if count >= 10 * factor else 1}f} {unit}"
    return f"{count:.0f} B"


def number(value: float | None, digits: int = 3) -> str | None:
    """A number with a fixed count of decimals; None stays None."""
    return None if value is None else f"{value:.{digits}f}"


YES = N_("yes")
NO = N_("no")
