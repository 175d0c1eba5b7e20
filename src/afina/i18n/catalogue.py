"""The four catalogues, read as they are from `catalogues/*.po` and kept in memory.

English is the reference: its texts are the keys themselves (a test holds `en.po` to that), so showing English reads
no file. The other languages are read when first asked for; a thousand texts take a few hundredths of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "catalogues"


@dataclass(frozen=True)
class Language:
    """A language of the interface.

    name: what its speakers call it; locale: whose number and date formats Babel is asked for (it has none for Tetum,
    whose writers use the Portuguese ones); plurals: how many plural forms its catalogue holds (Tetum and Indonesian
    nouns do not change).
    """

    code: str
    name: str
    locale: str
    plurals: int

    def form(self, n: float) -> int:
        """Which plural form goes with `n`."""
        return int(self.plurals == 2 and n != 1)


LANGUAGE: Mapping[str, Language] = {
    "tet": Language("tet", "Tetun", "pt", 1),
    "pt": Language("pt", "Português", "pt", 2),
    "id": Language("id", "Bahasa Indonesia", "id", 1),
    "en": Language("en", "English", "en", 2),
}


@dataclass(frozen=True)
class Catalogue:
    """The texts of one language: `texts[msgid]`, and `plurals[msgid]` with one entry a plural form."""

    texts: Mapping[str, str] = field(default_factory=dict)
    plurals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@cache
def catalogue(code: str) -> Catalogue:
    """The catalogue of a language; an untranslated or fuzzy text is left out and therefore shown in English."""
    if code == "en":
        return Catalogue()
    from babel.messages.pofile import read_po

    with (FOLDER / f"{code}.po").open("rb") as file:
        entries = [entry for entry in read_po(file, locale=None, abort_invalid=True) if entry.id and not entry.fuzzy]
    texts = {entry.id: entry.string for entry in entries if isinstance(entry.id, str) and entry.string}
    plurals = {
        entry.id[0]: tuple(entry.string) for entry in entries if not isinstance(entry.id, str) and all(entry.string)
    }
    return Catalogue(texts, plurals)
