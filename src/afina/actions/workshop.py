"""Making a better dataset of a messy one: remedies, rows changed by hand, the history of it, and what differs.

Every change makes a new version; the person's file is only read.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afina.actions.datasets import LENGTH, counter_of, find_dataset
from afina.actions.rows import measure, readable
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, Message, say
from afina.core.paths import Home
from afina.data import repairs, store, versions
from afina.data.conversations import Row, judge, turns_of
from afina.data.diff import Change, diff
from afina.data.entries import Entry, is_whole
from afina.data.examples import Example, Turn
from afina.data.faults import Fault
from afina.data.formats import convert
from afina.data.json_rows import Record
from afina.data.marks import marked
from afina.data.offers import WAYS, Way
from afina.data.readers import read
from afina.data.remedies import Remedy, thinned
from afina.data.titles import title
from afina.registry.records import HistoryInfo, StepInfo

DONE: dict[str, str] = {
    "drop": N_("rows removed"),
    "leave_out": N_("left out"),
    "join": N_("turns joined"),
    "map": N_("roles renamed"),
    "convert": N_("written as the others are"),
    "shorten": N_("shortened"),
    "thin": N_("some kept"),
    "mask": N_("replaced"),
}
WORDS: dict[str, str] = {
    "file": N_("Read from the file"),
    "edit": N_("Changed by hand"),
    "add": N_("Rows added"),
    "remove": N_("Rows removed by hand"),
}


@dataclass(frozen=True)
class Fix:
    """What a remedy needs to know beyond its name: the way, the version it is meant for, and what rows are measured by."""

    code: str
    way: str | None = None
    version: str | None = None
    max_length: int | None = None
    model: str | None = None
    validation: str | None = None


def dataset_history(home: Home, name: str) -> HistoryInfo:
    """What a dataset has been through. Raises AfinaError `dataset_not_found`."""
    return _told(versions.history(home, find_dataset(home, name).file))


def fix_dataset(home: Home, name: str, fix: Fix) -> StepInfo:
    """Apply a remedy to what is current. Raises AfinaError `no_remedy`, `nothing_to_fix`, `nothing_left`,
    `version_changed`, `dataset_not_found`."""
    found = _opened(home, name, fix.version)
    way = _way(fix)
    path = store.version_path(home, found.step.sha256)
    remedy = Remedy(fix.code, way, _marks(home, fix, path))
    if way == "shorten":
        remedy.shorten = _shortener(home, fix)
    return _step(home, found, remedy)


def _way(fix: Fix) -> Way:
    ways = WAYS.get(fix.code, ())
    way = next((known for known in ways if fix.way in (None, known)), None)
    if way is None:
        message = say(N_("There is no remedy “{way}” for “{code}”."), way=fix.way or "–", code=fix.code)
        remedy = say(N_("There are: {ways}."), ways=", ".join(ways)) if ways else say(N_("Change the rows by hand."))
        raise AfinaError(Problem("no_remedy", message, remedy, "way" if ways else "code", fix.way or fix.code))
    return way


def _marks(home: Home, fix: Fix, path: Any) -> frozenset[int]:
    """The rows that the remedy is for."""
    if fix.code == "constant_answer":
        return thinned(list(_answers(path)))
    if fix.code == "leak" and not fix.validation:
        message = say(N_("It is not said which validation dataset is meant."))
        raise AfinaError(Problem("no_validation", message, say(N_("Name the validation dataset.")), "validation"))
    return frozenset(marked(home, path, fix.code, measure(home, fix.max_length, fix.validation, fix.model)))


def _answers(path: Any) -> Iterator[tuple[int, bytes]]:
    for item in read(path):
        if isinstance(item, Example) and item.answers:
            yield item.row, hashlib.blake2b(item.answers[0].content.strip().encode(), digest_size=8).digest()


def _shortener(home: Home, fix: Fix) -> Any:
    tokenizer = counter_of(home, fix.model).tokenizer
    if tokenizer is None:
        message = say(N_("There is no model to count tokens with."))
        raise AfinaError(Problem("no_model", message, say(N_("Add a model first.")), "model"))
    return repairs.fitting(tokenizer, fix.max_length or LENGTH)


def _step(home: Home, found: versions.History, remedy: Remedy) -> StepInfo:
    sha256, rows = store.rewrite(home, found.step.sha256, remedy.apply)
    if not (remedy.removed or remedy.changed or remedy.left_out):
        message = say(N_("There is nothing to do about “{code}” here."), code=remedy.code)
        raise AfinaError(Problem("nothing_to_fix", message, say(N_("Look at the report again.")), "code", remedy.code))
    _refuse_nothing(rows)
    step = versions.Step(
        0,
        "fix",
        sha256,
        rows,
        time.time(),
        code=remedy.code,
        way=remedy.way,
        removed=remedy.removed,
        changed=remedy.changed,
        left_out=remedy.left_out,
        format=found.step.format,
    )
    return _added(home, found, step)


def _added(home: Home, found: versions.History, step: versions.Step) -> StepInfo:
    now = versions.append(home, found, step)
    versions.tidy(home)
    return _told(now).steps[now.current]


def _refuse_nothing(rows: int) -> None:
    if not rows:
        message = say(N_("Then no row would be left."))
        raise AfinaError(Problem("nothing_left", message, say(N_("Correct some of the rows by hand first."))))


def _opened(home: Home, name: str, version: str | None) -> versions.History:
    """The history, when `version` (if it is given) is still the current one."""
    found = versions.history(home, find_dataset(home, name).file)
    if version is not None and version != found.step.sha256:
        raise versions.changed_meanwhile(found.name)
    return found


# ---------------------------------------------------------------- rows by hand


def edit_row(home: Home, name: str, row: int, content: Any, version: str | None = None) -> StepInfo:
    """Replace a row: `content` is {"messages": […]}, {"text": …} or {"prompt", "chosen", "rejected"}. Raises AfinaError `row_not_found`, those of the row."""
    found = _opened(home, name, version)
    _present(found, [row])
    before = store.entries_at(home, found.step.sha256, [row])[0]
    line = parsed(content, row, before.example).line_of_json()

    def change(lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[bytes, bool]]:
        for number, old in lines:
            whole = is_whole(old)
            yield (line if number == row and not whole else old), not whole

    sha256, rows = store.rewrite(home, found.step.sha256, change)
    step = versions.Step(0, "edit", sha256, rows, time.time(), changed=1, format=found.step.format)
    return _added(home, found, step)


def add_rows(home: Home, name: str, contents: Sequence[Any], version: str | None = None) -> StepInfo:
    """Put rows at the end. Raises AfinaError with what is wrong with them."""
    found = _opened(home, name, version)
    first = found.step.rows + 1
    made = [parsed(content, first + number) for number, content in enumerate(contents)]

    def change(lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[bytes, bool]]:
        yield from ((line, not is_whole(line)) for _, line in lines)
        yield from ((example.line_of_json(), True) for example in made)

    sha256, rows = store.rewrite(home, found.step.sha256, change)
    step = versions.Step(0, "add", sha256, rows, time.time(), added=len(made), format=found.step.format)
    return _added(home, found, step)


def remove_rows(home: Home, name: str, numbers: Iterable[int], version: str | None = None) -> StepInfo:
    """Take rows out. Raises AfinaError `row_not_found`, `nothing_left`."""
    found = _opened(home, name, version)
    gone = frozenset(numbers)
    _present(found, gone)
    remedy = Remedy("", "drop", gone)
    sha256, rows = store.rewrite(home, found.step.sha256, remedy.apply)
    _refuse_nothing(rows)
    step = versions.Step(0, "remove", sha256, rows, time.time(), removed=remedy.removed, format=found.step.format)
    return _added(home, found, step)


def _present(found: versions.History, numbers: Iterable[int]) -> None:
    lost = [number for number in numbers if not 1 <= number <= found.step.rows]
    if lost:
        message = say(N_("“{name}” has no row {row}."), name=found.name, row=lost[0])
        remedy = say(N_("It has {rows} rows."), rows=found.step.rows)
        raise AfinaError(Problem("row_not_found", message, remedy, "row", lost[0]), "not_found")


def parsed(content: Any, row: int, before: Example | None = None) -> Example:
    """A row as a person gives it. Raises AfinaError with everything that makes it unusable."""
    if isinstance(content, dict) and isinstance(content.get("text"), str):
        example = Example(text=content["text"], row=row)
        faults: list[Fault] = []
    elif isinstance(content, dict) and "chosen" in content:
        made, faults = convert(Record(row, None, content), "preference")
        example = made or Example(row=row)
        if before is not None:
            example = replace(example, tools=before.tools)
    else:
        noted = Row(row, None, content)
        given = content.get("messages") if isinstance(content, dict) else None
        turns: tuple[Turn, ...] | None = turns_of(noted, "messages", given)
        faults = noted.faults
        tools = before.tools if before is not None else None
        example = Example(turns or (), row=row, tools=tools)
    wrong = [fault for fault in faults or judge(example) if fault.severity == "error"]
    if wrong:
        raise AfinaError([Problem(f.code, f.message, f.remedy, f.field or "messages", f.value) for f in wrong])
    return example


# ---------------------------------------------------------------- history


def go_back(home: Home, name: str, number: int) -> HistoryInfo:
    """Make a step of the history the current one. Raises AfinaError `step_not_found`."""
    return _told(versions.go_to(home, versions.history(home, find_dataset(home, name).file), number))


def start_again(home: Home, name: str) -> HistoryInfo:
    """Make what the file holds now the current version."""
    versions.start_again(home, find_dataset(home, name).file)
    return dataset_history(home, name)


def dataset_diff(
    home: Home, name: str, before: int | None = None, after: int | None = None, offset: int = 0, limit: int = 20
) -> dict[str, Any]:
    """What differs between two steps (the current one and the one it was made from, unless others are named):
    `{"before", "after", "removed", "added", "changed", "total", "changes": [{"kind", "before": row, "after": row}]}`.

    Raises AfinaError `step_not_found`.
    """
    found = versions.history(home, find_dataset(home, name).file)
    to = found.current if after is None else after
    since = before if before is not None else (_stepped(found, to).parent or 0)
    old, new = _stepped(found, since).sha256, _stepped(found, to).sha256
    changes = diff(store.version_path(home, old), store.version_path(home, new))
    shown = changes[offset : offset + limit]
    olds = _by_row(home, old, [change.before for change in shown])
    news = _by_row(home, new, [change.after for change in shown])
    counts = {kind: sum(change.kind == kind for change in changes) for kind in ("removed", "added", "changed")}
    told = [_change(change, olds, news) for change in shown]
    return {"before": since, "after": to, **counts, "total": len(changes), "changes": told}


def _stepped(found: versions.History, number: int) -> versions.Step:
    if not 0 <= number < len(found.steps):
        message = say(N_("“{name}” has no version {number}."), name=found.name, number=number)
        remedy = say(N_("The history lists the versions there are."))
        raise AfinaError(Problem("step_not_found", message, remedy, "number", number), "not_found")
    return found.steps[number]


def _by_row(home: Home, sha256: str, numbers: list[int | None]) -> dict[int, Entry]:
    wanted = sorted({number for number in numbers if number is not None})
    return {entry.row: entry for entry in store.entries_at(home, sha256, wanted) if entry.row is not None}


def _change(change: Change, olds: dict[int, Entry], news: dict[int, Entry]) -> dict[str, Any]:
    def side(row: int | None, entries: dict[int, Entry]) -> dict[str, Any] | None:
        if row is None:
            return None
        entry = entries[row]
        raw = entry.raw if entry.example is None else None
        return {"row": row, **readable(entry.example), "raw": raw, "problems": entry.faults}

    return {"kind": change.kind, "before": side(change.before, olds), "after": side(change.after, news)}


def export_dataset(home: Home, name: str) -> Iterator[bytes]:
    """What is current as JSON lines, a row a line; rows that cannot be used are left out. Raises `dataset_not_found`."""
    path = find_dataset(home, name).path
    return (item.line_of_json() + b"\n" for item in read(path) if isinstance(item, Example))


def _told(found: versions.History) -> HistoryInfo:
    steps = [_step_info(step, step.number == found.current) for step in found.steps]
    return HistoryInfo(name=found.name, current=found.current, changed=found.changed, steps=steps)


def _step_info(step: versions.Step, current: bool) -> StepInfo:
    words = Message(WORDS.get(step.what, "{code}"), {"code": step.code})
    if step.code is not None and step.way is not None:
        words = say(N_("{problem}: {done}"), problem=title(step.code), done=Message(DONE[step.way]))
    return StepInfo(
        number=step.number,
        parent=step.parent,
        what=step.what,
        code=step.code,
        way=step.way,
        version=step.sha256,
        rows=step.rows,
        removed=step.removed,
        changed=step.changed,
        added=step.added,
        left_out=step.left_out,
        at=step.at,
        current=current,
        message=str(words),
        said=words,
    )
