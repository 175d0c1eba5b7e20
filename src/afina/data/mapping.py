"""What the columns of a table mean when their names do not say it: guessed, asked for, and remembered for that file.

How pages and commands use it:

    found = guess_mapping(path)          # None where nothing has to be asked: the format is known, or there are no columns
    found.columns, found.samples         # show them, with the proposal `found.mapping` (None: nothing fits) preselected
    mapping = make_mapping(prompt="Soru", answer="Javob")       # or text="Body"; names as they stand in the file
    remember(home, path, mapping)        # raises AfinaError `bad_mapping` when the file has no such columns
    read_as_remembered(home, path)       # as `readers.read`; the same for `check`, `page`: mapping=remembered(home, path)
    forget(home, path)

`store.freeze` and `cache.checked` look the mapping up by themselves. Kept in `.state/mappings.json`, by the file's place in
the home folder (or its whole path outside it); the person's file is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping as Fields
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from afina.core.errors import AfinaError, Problem
from afina.core.files import read_json, write_json
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.data.formats import ANSWERS, CONTEXTS, PROMPTS, Mapping, guess, names_of, plain_name
from afina.data.readers import Folder, Source, first_rows, read

SAMPLES = 5
"""Rows shown beside the question."""
CELL = 200
"""Characters of a cell shown."""
WORDS = 3
"""A question or an answer has at least so many words, most of the time; labels and numbers have fewer."""
_PROMPTS = frozenset(PROMPTS) | frozenset(
    ["request", "message", "utterance", "ask", "asked", "title", "topic", "subject", "problem", "query", "text1"]
)
_ANSWERS = frozenset(ANSWERS) | frozenset(
    ["responses", "reply", "replies", "solution", "explanation", "summary", "translation", "text2", "body"]
)
_SYSTEM = frozenset(["system", "sistema", "sistem", "persona"])


@dataclass(frozen=True)
class Guess:
    """The columns of a file, its first rows as texts, and what the columns most likely mean (None: it cannot be told)."""

    columns: list[str]
    samples: list[dict[str, str]]
    mapping: Mapping | None


@dataclass(frozen=True)
class _Column:
    """A column with texts in it."""

    name: str
    words: float
    different: float
    questions: float
    order: int


def guess_mapping(path: Path) -> Guess | None:
    """What to ask a person about the columns of `path`; None where a row of a known format is found, or there are no columns.

    Raises AfinaError when the path cannot be opened.
    """
    source = read(path)
    parts = source.sources if isinstance(source, Folder) else (source,)
    rows = next((rows for part in parts if (rows := _rows(part))), None)
    if not rows or any(guess(names_of(row)) for row in rows):
        return None
    columns = list(dict.fromkeys(str(name) for row in rows for name in row))
    samples = [{str(name): str(value)[:CELL] for name, value in row.items()} for row in rows[:SAMPLES]]
    return Guess(columns, samples, _guess(columns, rows))


def _rows(source: Source) -> list[dict[str, object]]:
    return first_rows(source) if source.fault is None and source.container not in ("pairs", "plain") else []


def make_mapping(**columns: str | None) -> Mapping:
    """A mapping from names as they stand in a file. `prompt` and `answer`, or `text` alone. Raises AfinaError `bad_mapping`."""
    mapping = Mapping(**{name: plain_name(column) for name, column in columns.items() if column})
    pair = mapping.prompt is not None and mapping.answer is not None and mapping.prompt != mapping.answer
    if pair == (mapping.text is not None):
        raise AfinaError(_bad(say(N_("A question's and an answer's column are needed, or a text's column alone."))))
    return mapping


def remember(home: Home, path: Path, mapping: Mapping) -> None:
    """Keep `mapping` for this file. Raises AfinaError `bad_mapping` when it does not fit the file."""
    source = read(path, mapping)
    parts = source.sources if isinstance(source, Folder) else (source,)
    if not any(part.mapping == mapping for part in parts):
        names = ", ".join(name for name in asdict(mapping).values() if name)
        raise AfinaError(_bad(say(N_("“{name}” has no columns {names}."), name=path.name, names=names)))
    kept = {name: column for name, column in asdict(mapping).items() if column is not None}
    write_json(_place(home), {**_all(home), _key(home, path): kept})


def remembered(home: Home, path: Path) -> Mapping | None:
    """What is known about the columns of this file."""
    kept = _all(home).get(_key(home, path))
    try:
        return Mapping(**kept) if isinstance(kept, dict) else None
    except TypeError:
        return None


def forget(home: Home, path: Path) -> None:
    """Ask again about this file."""
    kept = _all(home)
    if kept.pop(_key(home, path), None) is not None:
        write_json(_place(home), kept)


def read_as_remembered(home: Home, path: Path) -> Source | Folder:
    """`readers.read` with the mapping that is known for this file."""
    return read(path, remembered(home, path))


def _place(home: Home) -> Path:
    return home.state / "mappings.json"


def _all(home: Home) -> dict[str, object]:
    try:
        kept = read_json(_place(home))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _key(home: Home, path: Path) -> str:
    absolute = path.absolute()
    return absolute.relative_to(home.root).as_posix() if absolute.is_relative_to(home.root) else str(absolute)


def _bad(message: object) -> Problem:
    return Problem("bad_mapping", message, say(N_("Choose among the columns of the file.")), "mapping")  # type: ignore[arg-type]


def _guess(columns: list[str], rows: list[dict[str, object]]) -> Mapping | None:
    """By names that hold a known word ("customer_question"); else by what the columns hold: texts, and of two the longer
    one is the answer, unless the other asks no questions and it does."""
    texts = [found for order, name in enumerate(columns) if (found := _column(name, order, rows))]
    answer = _named(texts, _ANSWERS)
    prompt = _named([column for column in texts if column is not answer], _PROMPTS)
    rest = [column for column in texts if column not in (answer, prompt) and column.different > 0.3]
    alone = rest if answer is None else [answer]
    if prompt is None and len(alone) == 1 and alone[0].words >= WORDS and (answer is None or not rest):
        return Mapping(text=plain_name(alone[0].name))
    rest = sorted((column for column in rest if column.words >= 1), key=lambda column: -column.words)[:2]
    if answer is None and prompt is None and len(rest) == 2:
        first, second = sorted(rest, key=lambda column: (-column.questions, column.words, column.order))
        prompt, answer = first, second
    elif answer is None and rest:
        answer = rest[0]
    elif prompt is None and rest:
        prompt = max(rest, key=lambda column: (column.questions, -column.order))
    if prompt is None or answer is None:
        return None
    others = {plain_name(name) for name in columns} - {plain_name(prompt.name), plain_name(answer.name)}
    context = next((name for name in CONTEXTS if name in others), None)
    system = next((name for name in sorted(others) if name in _SYSTEM), None)
    return Mapping(plain_name(prompt.name), plain_name(answer.name), None, system, context)


def _named(columns: list[_Column], words: frozenset[str]) -> _Column | None:
    """The first column whose name has one of the words in it."""
    return next((column for column in columns if words & set(plain_name(column.name).split("_"))), None)


def _column(name: str, order: int, rows: list[Fields[str, object]] | list[dict[str, object]]) -> _Column | None:
    """What a column holds; None when it is no texts."""
    values = [value for row in rows if (value := row.get(name)) not in (None, "")]
    texts = [
        value for value in values if isinstance(value, str) and not value.replace(".", "").replace("-", "").isdigit()
    ]
    if not texts or len(texts) < 0.7 * len(values):
        return None
    return _Column(
        name,
        mean(len(text.split()) for text in texts),
        len(set(texts)) / len(texts),
        round(sum(text.rstrip().endswith("?") for text in texts) / len(texts), 1),
        order,
    )
