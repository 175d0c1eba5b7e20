"""What can be wrong with a dataset: the codes, whether each blocks a run, and what to do about it.

A `Fault` is one finding in one row. `checks.py` gathers faults into groups; the sentences for several rows stand here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from afina.core.messages import N_, Message, say

Severity = Literal["error", "warning", "note"]

WARNINGS: frozenset[str] = frozenset(
    [
        "empty_prompt",
        "bad_turn_order",
        "stray_text",
        "too_long",
        "duplicate",
        "near_duplicate",
        "leak",
        "few_rows",
        "constant_answer",
        "secret",
        "personal_data",
    ]
)
NOTES: frozenset[str] = frozenset({"language"})

REMEDIES: dict[str, str] = {
    "not_utf8": N_("Save the file as UTF-8: in most editors that is a choice under “Save as”."),
    "bad_json": N_(
        "Correct the line in an editor; often a quote, a comma or a bracket is missing just before the place."
    ),
    "bad_csv": N_(
        "Put texts that hold commas, quotes or line breaks in double quotes, and write a quote inside as two."
    ),
    "bad_parquet": N_("Write the file again with the program it came from, or save the table as CSV or JSON lines."),
    "bad_archive": N_("Copy or download the file again; it seems to be damaged."),
    "binary": N_("Save the examples as text, JSON, CSV or Parquet and add that file."),
    "archive": N_("Unpack it and add the file that is inside."),
    "too_big": N_("Split the file into smaller ones."),
    "row_too_big": N_("Split this row into several, or take it out."),
    "empty_file": N_("Write at least one example into the file, or delete it."),
    "unknown_format": N_(
        "Name the columns “prompt” and “answer”, or “messages” for conversations, or “text” for documents."
    ),
    "mixed_formats": N_("Keep one kind of row in a file; put the others into a file of their own."),
    "missing_field": N_("Add the field to the row, or take the row out."),
    "wrong_type": N_("Write the value as text in quotes, or take the row out."),
    "unknown_role": N_("Rename the role to system, user, assistant or tool."),
    "no_answer": N_("Add the answer, or take the row out."),
    "empty_answer": N_("Write the answer, or take the row out."),
    "empty_prompt": N_("Write the question, unless the model should speak without one."),
    "bad_turn_order": N_("Nothing needs to be done; to be exact, let user and assistant take turns."),
    "stray_text": N_("Put a label such as “Question:” or “Answer:” in front, or delete the text."),
    "too_long": N_("Choose a larger maximum length, or make these rows shorter."),
    "duplicate": N_("Take the repeated rows out, unless they should count more."),
    "near_duplicate": N_("Look at a few of these pairs; where they say the same, keep the better one."),
    "leak": N_("Take these rows out of one of the two datasets."),
    "few_rows": N_("Add examples if you can, and watch the validation loss."),
    "constant_answer": N_("Add examples with other answers, or take most of these out."),
    "secret": N_("Replace it with a made-up value, or take the row out; a model can repeat what it has read."),
    "personal_data": N_("Replace it with made-up data, unless the person agrees; a model can repeat what it has read."),
    "language": N_("Nothing needs to be done; the model learns to answer in these languages."),
    "template_mismatch": N_("Choose another chat template, or change the row."),
}

MANY: dict[str, str] = {
    "not_utf8": N_("{count} places are not UTF-8 text, the first in line {line}."),
    "bad_json": N_("{count} rows cannot be read as JSON, the first in line {line}."),
    "bad_csv": N_("{count} rows do not fit the table, the first is row {row}."),
    "row_too_big": N_("{count} rows are too big to be read, the first is row {row}."),
    "mixed_formats": N_("{count} rows have another form than the first rows; the first of them is row {row}."),
    "missing_field": N_("{count} rows lack a field; the first is row {row}, which has no “{field}”."),
    "wrong_type": N_("{count} rows hold a value of the wrong kind; the first is row {row}, field “{field}”."),
    "unknown_role": N_("{count} rows use a role that is not known; the first is row {row}: “{value}”."),
    "no_answer": N_(
        "{count} rows have no assistant turn, so there is nothing to learn from them; the first is row {row}."
    ),
    "empty_answer": N_(
        "{count} rows have an empty answer, so there is nothing to learn from them; the first is row {row}."
    ),
    "empty_prompt": N_("{count} rows have an empty question; the first is row {row}."),
    "bad_turn_order": N_("{count} rows do not let user and assistant take turns; the first is row {row}."),
    "stray_text": N_("{count} passages stand outside any example and are left out, the first in line {line}."),
    "duplicate": N_("{count} rows repeat an earlier row (e.g. row {row} = row {earlier})."),
    "near_duplicate": N_("{count} rows say nearly the same as an earlier row (e.g. row {row} and row {earlier})."),
    "secret": N_("{count} rows look like they hold a password or key; the first is row {row} ({kind})."),
    "personal_data": N_("{count} rows look like they hold personal data; the first is row {row} ({kind})."),
    "leak": N_("{count} rows also stand in the validation dataset; validation loss would look too good."),
    "template_mismatch": N_("{count} rows do not fit the model's chat template; the first is row {row}."),
}

EXCERPT = 160


@dataclass(frozen=True)
class Fault:
    """One finding. `row` counts from 1 (None: the file as a whole); `value` is what was found, shortened.

    file: where a dataset is a folder, the file in it; rows then count through all files, lines within each.
    """

    code: str
    message: Message
    row: int | None = None
    line: int | None = None
    field: str | None = None
    value: str | None = None
    excerpt: str | None = None
    file: str | None = None

    @property
    def severity(self) -> Severity:
        """Errors block a run; warnings do not; notes only tell."""
        return severity(self.code)

    @property
    def remedy(self) -> Message:
        """What to do next."""
        return remedy(self.code)


def severity(code: str) -> Severity:
    """Whether findings of this code block a run."""
    return "warning" if code in WARNINGS else "note" if code in NOTES else "error"


def remedy(code: str) -> Message:
    """What to do about findings of this code."""
    return Message(REMEDIES[code])


def moved(fault: Fault, rows: int, lines: int = 0) -> Fault:
    """The same finding, further down by so many rows and lines: for what was read as a part of something larger."""
    if not rows and not lines:
        return fault
    values = dict(fault.message.values)
    for name, by in (("row", rows), ("line", lines), ("last", rows if "form" in values else lines)):
        if isinstance(values.get(name), int):
            values[name] += by
    return replace(
        fault,
        message=Message(fault.message.template, values),
        row=None if fault.row is None else fault.row + rows,
        line=None if fault.line is None else fault.line + lines,
    )


def in_file(fault: Fault, name: str) -> Fault:
    """The same finding, with the name of the file of a folder in its sentence."""
    return replace(fault, message=say(N_("{file}: {problem}"), file=name, problem=fault.message), file=name)


class Unreadable(Exception):  # noqa: N818 - it carries a finding, it is not an error of the program
    """Reading cannot go on past this point; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(str(fault.message))


def shorten(value: Any, limit: int = EXCERPT) -> str:
    """`value` in at most `limit` characters, on one line, safe to print and to store."""
    if isinstance(value, str):
        text = value[: limit * 4]
    elif isinstance(value, dict | list | tuple):
        text = _outline(value, 3)
    elif isinstance(value, int) and value.bit_length() > 1000:
        text = "…"
    else:
        text = str(value)[: limit * 4]
    text = " ".join(text.split())
    text = "".join("�" if 0xD800 <= ord(c) <= 0xDFFF or ord(c) < 32 else c for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _outline(value: Any, depth: int) -> str:
    """The beginning of a container in the manner of JSON; `depth` levels of it and no more."""
    if not isinstance(value, dict | list | tuple):
        return f'"{value[:80]}"' if isinstance(value, str) else shorten(_json_word(value), 40)
    inside = ["…"] if depth == 0 and value else []
    if depth and isinstance(value, dict):
        inside = [f'"{str(key)[:40]}": {_outline(value[key], depth - 1)}' for key in list(value)[:8]]
    elif depth:
        inside = [_outline(item, depth - 1) for item in value[:8]]
    if depth and len(value) > 8:
        inside.append("…")
    text = ", ".join(inside)
    return f"{{{text}}}" if isinstance(value, dict) else f"[{text}]"


def _json_word(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value


def shown(value: Any) -> str:
    """`value` as it stands in a sentence: texts in quotes, null and true as JSON writes them, containers by outline."""
    return f"“{shorten(value, 60)}”" if isinstance(value, str) else shorten(_json_word(value), 60)


def not_text(text: str, row: int | None, line: int | None, before: int = 0) -> Fault | None:
    """The first byte of `text` that did not decode (kept as U+DC00 + byte, see `textfile`) or is NUL, as a fault.

    `line` is the line in which `text` begins, `before` the number of characters in front of it there.
    """
    match = None if text.isascii() and "\0" not in text else _NOT_TEXT.search(text)
    if match is None:
        return None
    at = match.start()
    start = text.rfind("\n", 0, at) + 1
    number = (line or 1) + text.count("\n", 0, at)
    message = say(
        N_("Line {line}, column {column}: the byte {byte} is not UTF-8 text."),
        line=number,
        column=at - start + 1 + (0 if start else before),
        byte=f"{ord(match.group()) & 0xFF:02X}",
    )
    return Fault("not_utf8", message, row, number, excerpt=shorten(text[max(start, at - 60) : at + 60]))


_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
