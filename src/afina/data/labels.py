"""The words that mark turns in a text document, in the four languages, and how a line is recognised as a label.

A label is a known word, with or without accents and in any case, and a colon (`Question:`, `**Pergunta 2:**`), or a
heading or bold line of its own (`### Response`, `**Jawaban**`). Knows nothing of examples.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Side = Literal["user", "input", "assistant", "system"]

USER = (
    "instruction question prompt user human q "
    "instrucao pergunta questao usuario utilizador humano "
    "instrusaun uzuariu perguntas kestaun husu "
    "instruksi pertanyaan pengguna manusia tanya soal perintah"
)
INPUT = "input entrada masukan"
ASSISTANT = (
    "response answer output assistant completion a "
    "resposta saida assistente "
    "asistente hatan "
    "jawaban asisten keluaran respons tanggapan jawab"
)
SYSTEM = "system sistema sistem"

SIDES: dict[str, Side] = {
    **dict.fromkeys(USER.split(), "user"),
    **dict.fromkeys(INPUT.split(), "input"),
    **dict.fromkeys(ASSISTANT.split(), "assistant"),
    **dict.fromkeys(SYSTEM.split(), "system"),
}
LETTERS: dict[str, Side] = {"p": "user", "t": "user", "r": "assistant", "j": "assistant"}
"""Pergunta/Resposta, Tanya/Jawab: read as labels only in a document that begins with one of them."""

_LABEL = re.compile(
    r"[ \t]{0,3}(?P<heading>#{1,6}[ \t]*)?(?P<bold>\*{1,3}|_{1,3})?[ \t]*"
    r"(?P<word>(?:[^\W\d_][\u0300-\u036f]*){1,20})(?:[ \t]*\#?[ \t]*\d{1,6})?[ \t]*"
    r"(?P<early>[:：])?(?(bold)[ \t]*(?P<close>\*{1,3}|_{1,3})?)[ \t]*(?(early)|(?P<late>[:：])?)[ \t]*(?P<rest>.*)",
    re.DOTALL,
)


_LISTED = re.compile(r"[ \t]{0,3}(?:\d{1,6}[.)]|[-*+>•])[ \t]+")


@dataclass(frozen=True, slots=True)
class Label:
    """A line that begins a turn: whose it is, the word as normalised, and what stands behind it on the line."""

    side: Side
    word: str
    rest: str


def plain_word(word: str) -> str:
    """`word` in lower case and without accents: "Instrução" → "instrucao"."""
    if word.isascii():
        return word.lower()
    return "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))


@dataclass(frozen=True, slots=True)
class Style:
    """What counts as a label in one document, besides words: the letters Q/A; P/R and T/J; marks of a list in front."""

    short: bool = True
    letters: bool = False
    listed: bool = False


def find_label(line: str, style: Style = Style()) -> Label | None:
    """The label at the start of `line`, if there is one."""
    if style.listed and (mark := _LISTED.match(line)):
        line = line[mark.end() :]
    match = _LABEL.match(line)
    if match is None:
        return None
    word = plain_word(match["word"])
    side = SIDES.get(word) or (LETTERS.get(word) if style.letters else None)
    if side is None or (len(word) == 1 and not style.short):
        return None
    colon = match["early"] or match["late"]
    rest: str = match["rest"].rstrip()
    bold, close = match["bold"], match["close"]
    if bold and not close:
        if not rest.endswith(bold):
            return None
        rest = rest[: -len(bold)].rstrip()
    if colon or (not rest and len(word) > 1 and (match["heading"] or bold)):
        return Label(side, word, rest)
    return None


def find_style(text: str) -> Style:
    """The style of a document whose beginning is `text`: its first label decides.

    Where questions and answers are marked with words, "A:" is a choice in a question rather than an answer.
    """
    first = Style()
    for line in text.split("\n"):
        listed = next((way for way in (False, True) if find_label(line, Style(letters=True, listed=way))), None)
        if listed is not None:
            label = find_label(line, Style(letters=True, listed=listed))
            first = Style(True, label is not None and label.word in LETTERS, listed)
            break
    found = {(label.side, len(label.word) > 1) for line in text.split("\n") if (label := find_label(line, first))}
    in_words = {("user", True), ("assistant", True)} <= found and ("user", False) not in found
    return Style(not in_words, first.letters, first.listed)
