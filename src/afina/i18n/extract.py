"""`python -m afina.i18n.extract` brings the catalogues up to the code: new texts in, lost ones out, translations kept.

A text counts when it is the literal first argument of `N_`, `_`, `say`, `gettext` or `ngettext` in a module, a template
or a browser script. Needed by developers only.
"""

from __future__ import annotations

import ast
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_javascript
from babel.messages.pofile import read_po, write_po
from jinja2.ext import babel_extract

from afina.core.files import atomic
from afina.i18n.catalogue import FOLDER, LANGUAGE

PACKAGE = Path(__file__).parents[1]
KEYWORDS = ("N_", "_", "say", "gettext", "ngettext")
_PLURAL_FORMS = {1: "nplurals=1; plural=0;", 2: "nplurals=2; plural=(n != 1);"}

Id = str | tuple[str, str]


def texts(package: Path = PACKAGE) -> dict[Id, list[str]]:
    """Every text of the program → the files it stands in (relative, sorted). A plural text is a pair."""
    found: dict[Id, list[str]] = {}
    for path in sorted(package.rglob("*")):
        if path.suffix in _READERS and path.is_file():
            place = path.relative_to(package).as_posix()
            for text in _READERS[path.suffix](path):
                places = found.setdefault(text, [])
                if place not in places:
                    places.append(place)
    return found


def _python(path: Path) -> Iterator[Id]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in KEYWORDS:
                literals = [
                    arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
                ]
                yield from _ids(name, literals)


def _template(path: Path) -> Iterator[Id]:
    options = {"silent": "false", "trimmed": "true"}
    for _, name, arguments, _ in babel_extract(io.BytesIO(path.read_bytes()), KEYWORDS, (), options):
        yield from _ids(name, _literals(arguments))


def _script(path: Path) -> Iterator[Id]:
    keywords = dict.fromkeys(KEYWORDS)
    for _, name, arguments, _ in extract_javascript(io.BytesIO(path.read_bytes()), keywords, (), {"encoding": "utf-8"}):
        yield from _ids(name, _literals(arguments))


def _literals(arguments: Any) -> list[str]:
    """The literal strings among the arguments as Babel gives them: one string, or a tuple with None for the others."""
    return [item for item in ([arguments] if isinstance(arguments, str) else arguments or ()) if isinstance(item, str)]


_READERS = {".py": _python, ".html": _template, ".js": _script}


def _ids(name: str, literals: list[str]) -> Iterator[Id]:
    if name == "ngettext" and len(literals) == 2:
        yield literals[0], literals[1]
    elif name != "ngettext" and literals and literals[0]:
        yield literals[0]


def update(code: str, found: dict[Id, list[str]], folder: Path = FOLDER) -> tuple[str, int]:
    """The new text of one catalogue, and how many of its texts want a translation."""
    path = folder / f"{code}.po"
    old = Catalog()
    if path.exists():
        with path.open("rb") as file:
            old = read_po(file, abort_invalid=True)
    new = Catalog(charset="utf-8", fuzzy=False)
    new.mime_headers = [("Plural-Forms", _PLURAL_FORMS[LANGUAGE[code].plurals])]
    missing = 0
    for text, places in found.items():
        known = old.get(text[0] if isinstance(text, tuple) else text)
        same = known is not None and known.id == text and not known.fuzzy
        string = known.string if same and known else None
        if code == "en":
            string = text
        elif not string or not all(string if isinstance(string, tuple) else (string,)):
            string = ("",) * LANGUAGE[code].plurals if isinstance(text, tuple) else ""
            missing += 1
        new.add(text, string, locations=[(place, 0) for place in places])
    return _po(new, code), missing


def _po(catalog: Catalog, code: str) -> str:
    """The catalogue's text with a header that changes only when the language does (no dates: the history knows them)."""
    buffer = io.BytesIO()
    write_po(buffer, catalog, width=0, omit_header=True, include_lineno=False)
    header = (
        f"# {LANGUAGE[code].name}: the texts of Afina's interface. Words: docs/how-to/translate.md.\n"
        'msgid ""\nmsgstr ""\n'
        f'"Language: {code}\\n"\n'
        '"MIME-Version: 1.0\\n"\n"Content-Type: text/plain; charset=utf-8\\n"\n"Content-Transfer-Encoding: 8bit\\n"\n'
        f'"Plural-Forms: {_PLURAL_FORMS[LANGUAGE[code].plurals]}\\n"\n\n'
    )
    return header + re.sub(r"\n{3,}", "\n\n", buffer.getvalue().decode("utf-8")).strip() + "\n"


def main() -> int:
    """Update all catalogues and say how many texts want a translation; 1 when any does."""
    found = texts()
    wanting = 0
    for code in LANGUAGE:
        content, missing = update(code, found)
        wanting += missing
        with atomic(FOLDER / f"{code}.po") as file:
            file.write(content)
        sys.stdout.write(f"{code}: {len(found)} texts, {missing} to translate\n")
    return int(wanting > 0)


if __name__ == "__main__":
    sys.exit(main())
