"""The catalogues say everything the program says, in every language, and nothing else."""

import re
import string

import pytest
from babel.messages.catalog import Message as Entry
from babel.messages.pofile import read_po

from afina.i18n import LANGUAGES
from afina.i18n.catalogue import FOLDER, LANGUAGE
from afina.i18n.extract import texts, update

FOUND = texts()


def entries(code: str) -> dict[object, Entry]:
    with (FOLDER / f"{code}.po").open("rb") as file:
        catalog = read_po(file, abort_invalid=True)
    assert not catalog.obsolete, f"{code}.po keeps texts that are no longer used: run python -m afina.i18n.extract"
    return {entry.id: entry for entry in catalog if entry.id}


def placeholders(text: str) -> set[str]:
    """Names in braces and in the old percent style."""
    braces = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    return braces | set(re.findall(r"%\((\w+)\)[sd]", text))


def strings(entry: Entry) -> tuple[str, ...]:
    """The translations that are there; that none is missing is a test of its own."""
    return tuple(text for text in ([entry.string] if isinstance(entry.string, str) else entry.string) if text)


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_text_of_the_program_is_translated(code: str) -> None:
    known = entries(code)
    assert set(known) == set(FOUND), "run python -m afina.i18n.extract, then translate what is new"
    forms = {entry.id: LANGUAGE[code].plurals if isinstance(entry.id, tuple) else 1 for entry in known.values()}
    empty = [entry.id for entry in known.values() if len(strings(entry)) != forms[entry.id] or entry.fuzzy]
    assert not empty, f"{len(empty)} texts want a translation, the first: {empty[:3]}"


@pytest.mark.parametrize("code", LANGUAGES)
def test_translations_name_the_same_values(code: str) -> None:
    wrong = []
    for entry in entries(code).values():
        wanted = placeholders(entry.id if isinstance(entry.id, str) else " ".join(entry.id))
        for text in strings(entry):
            found = placeholders(text)
            if found != wanted and not (isinstance(entry.id, tuple) and found == wanted - {"n"}):
                wrong.append((entry.id, text))
    assert not wrong


@pytest.mark.parametrize("code", LANGUAGES)
def test_translations_end_as_the_english_does(code: str) -> None:
    """A lost full stop or colon, or a stray space at either end, is a slip of the pen."""
    wrong = []
    for entry in entries(code).values():
        reference = entry.id if isinstance(entry.id, str) else entry.id[0]
        for text in strings(entry):
            same_end = [text.endswith(mark) == reference.endswith(mark) for mark in (".", ":", "?", "…", " ", "\n")]
            if not all(same_end) or text.startswith(" ") != reference.startswith(" "):
                wrong.append((reference, text))
    assert not wrong


def test_english_is_the_reference() -> None:
    assert all(entry.string == entry.id for entry in entries("en").values())


@pytest.mark.parametrize("code", LANGUAGES)
def test_catalogues_are_as_the_extraction_writes_them(code: str) -> None:
    assert update(code, FOUND)[0] == (FOLDER / f"{code}.po").read_text(encoding="utf-8"), (
        "run python -m afina.i18n.extract"
    )
