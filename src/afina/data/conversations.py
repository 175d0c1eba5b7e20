"""Lists of messages as turns, in OpenAI's and ShareGPT's words, and what is wrong with a conversation.

Everything is judged in one go: a row gives all its faults, not the first one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson

from afina.core.messages import N_, Message, say
from afina.data.examples import ROLES, Example, Role, Turn
from afina.data.faults import Fault, not_text, shorten, shown

ROLE_WORDS: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}

EMPTY = "“”"
EXPECTED: dict[str, str] = {
    "text": N_("Row {row}: “{field}” must be text, but it is {value}."),
    "list": N_("Row {row}: “{field}” must be a list, but it is {value}."),
    "object": N_("Row {row}: “{field}” must be an object with names and values, but it is {value}."),
    "number": N_("Row {row}: “{field}” must be a number from 0 to 1, but it is {value}."),
}


class Row:
    """The faults of one raw row while it becomes an example; `question` and `answer` name its columns, if it has any."""

    def __init__(self, row: int, line: int | None, raw: Any = None) -> None:
        self.row = row
        self.line = line
        self.raw = raw
        self.faults: list[Fault] = []
        self.question: str | None = None
        self.answer: str | None = None
        self.columns: tuple[str, str] | None = None
        self.names: dict[str, str | None] = {}  # with a column mapping: what a person calls each field

    def add(self, code: str, message: Any, field: str | None = None, value: Any = None) -> None:
        """Note a fault of this row."""
        field = self.names.get(field or "") or field
        found = None if value is None else shorten(value)
        excerpt = shorten(found if self.raw is None else self.raw) if found or self.raw else None
        self.faults.append(Fault(code, message, self.row, self.line, field, found, excerpt))

    def wrong_type(self, field: str, value: Any, expected: str = "text") -> None:
        """Note that `field` holds the wrong kind of value; `expected` is a key of EXPECTED."""
        field = self.names.get(field) or field
        message = Message(EXPECTED[expected], {"row": self.row, "field": field, "value": shown(value)})
        self.add("wrong_type", message, field, shown(value))

    def missing(self, field: str, present: Any) -> None:
        """Note that `field` is not there; `present` are the names that are."""
        field = self.names.get(field) or field
        names = ", ".join(shorten(str(name), 40) for name in list(present)[:12]) or "–"
        message = say(
            N_("Row {row}: “{field}” is missing; this row has {names}."), row=self.row, field=field, names=names
        )
        self.add("missing_field", message, field, names)


def turns_of(row: Row, name: str, value: Any) -> tuple[Turn, ...] | None:
    """The messages in field `name`, or None when something about them is an error (noted in `row`)."""
    before = len(row.faults)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = orjson.loads(value)
        except ValueError:
            row.wrong_type(name, value, "list")
            return None
    if not isinstance(value, list | tuple):
        row.wrong_type(name, value, "list")
        return None
    turns = [_turn(row, f"{name}.{number}", number, message) for number, message in enumerate(value, 1)]
    good = tuple(turn for turn in turns if turn is not None)
    return good if len(row.faults) == before else None


def _turn(row: Row, where: str, number: int, message: Any) -> Turn | None:
    if not isinstance(message, dict):
        row.wrong_type(where, message, "object")
        return None
    role = _role(row, where, number, message)
    calls = message.get("tool_calls")
    if not calls and (called := _called(message)):
        calls, message = called[0], {**message, "content": called[1]}
    if calls is not None and not isinstance(calls, list | tuple):
        row.wrong_type(f"{where}.tool_calls", calls, "list")
        calls = None
    key = "content" if "content" in message else "value"
    if key not in message and not calls:
        row.missing(f"{where}.content", message)
        return None
    content = _content(row, f"{where}.{key}", message.get(key), bool(calls))
    weight = message.get("weight", message.get("loss_weight"))
    if weight is None:
        weight = 1.0
    elif isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        row.wrong_type(f"{where}.weight", weight, "number")
        weight = 1.0
    if role is None or content is None:
        return None
    name, call_id = message.get("name"), message.get("tool_call_id")
    return Turn(
        role,
        content,
        float(weight),
        tuple(calls) if calls else None,
        name if isinstance(name, str) else None,
        call_id if isinstance(call_id, str) else None,
    )


def _called(message: dict[str, Any]) -> tuple[list[Any], Any] | None:
    """Tool calls in OpenAI's shape, and the text beside them, where they come in another: ShareGPT's `function_call` turn
    (its value is JSON), parts of the content, or OpenAI's older field."""
    content = message.get("content", message.get("value"))
    if str(message.get("role", message.get("from"))).strip().lower() == "function_call":
        return _calls([content], None)
    if isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "tool_call" for part in content
    ):
        parts = [part for part in content if isinstance(part, dict)]
        called = [part.get("value", part.get("text")) for part in parts if part.get("type") == "tool_call"]
        return _calls(called, [part for part in parts if part.get("type") != "tool_call"])
    return _calls([message["function_call"]], content) if isinstance(message.get("function_call"), dict) else None


def _calls(given: list[Any], content: Any) -> tuple[list[Any], Any] | None:
    """None where it is no call that is known; it is then learned as the text it is."""
    calls: list[Any] = []
    for call in given:
        try:
            value = orjson.loads(call) if isinstance(call, str) else call
        except ValueError:
            return None
        calls += value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in calls):
        return None
    return [{"type": "function", "function": one} for one in calls], content


def _role(row: Row, where: str, number: int, message: dict[str, Any]) -> Role | None:
    key = "role" if "role" in message else "from"
    value = message.get(key)
    if value is None:
        row.missing(f"{where}.role", message)
    elif not isinstance(value, str):
        row.wrong_type(f"{where}.{key}", value)
    else:
        role = ROLE_WORDS.get(value.strip().lower())
        if role is None:
            text = say(
                N_("Row {row}, turn {turn}: the role “{value}” is unknown. Known: {known}."),
                row=row.row,
                turn=number,
                value=shorten(value, 60),
                known=", ".join(ROLES),
            )
            row.add("unknown_role", text, f"{where}.{key}", value)
        return role
    return None


def _content(row: Row, where: str, value: Any, calls: bool) -> str | None:
    if value is None and calls:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        row.wrong_type(where, value)
        return None
    parts: list[str] = []
    for part in value:
        text = part if isinstance(part, str) else None
        if isinstance(part, dict) and part.get("type", "text") == "text":
            text = part.get("text") if part.get("text") is not None else part.get("value")
        if not isinstance(text, str):
            row.wrong_type(where, part)
            return None
        parts.append(text)
    return "".join(parts)


def judge(example: Example, row: Row | None = None) -> list[Fault]:
    """What is wrong with an example that has been read: answers, questions, order, characters. Adds to `row` if given."""
    row = row or Row(example.row, example.line)
    if _plainly_good(example):
        return row.faults
    if example.text is not None:
        if not example.text.strip():
            row.add("empty_answer", say(N_("Row {row}: the text is empty."), row=row.row), "text", EMPTY)
        _characters(row, "text", example.text)
        return row.faults
    for name, side in (("messages", example.turns), ("chosen", example.chosen), ("rejected", example.rejected)):
        for number, turn in enumerate(side or (), 1):
            _characters(row, f"{name}.{number}", turn.content)
    _writable(row, example)
    if example.chosen is not None and example.rejected is not None:
        for name, side in (("chosen", example.chosen), ("rejected", example.rejected)):
            _answers(row, side, name)
    else:
        _answers(row, example.turns, row.answer)
        _order(row, example.turns)
    if any(turn.role == "user" and not turn.content.strip() for turn in example.turns):
        row.add("empty_prompt", say(N_("Row {row}: the question is empty."), row=row.row), row.question, EMPTY)
    return row.faults


def _plainly_good(example: Example) -> bool:
    """A question and an answer with nothing special about them: most rows, and quickly told."""
    if len(example.turns) != 2 or example.tools is not None or example.chosen is not None:
        return False
    asked, answer = example.turns
    return (
        asked.role == "user"
        and answer.role == "assistant"
        and answer.weight == 1.0
        and bool(asked.content.strip())
        and bool(answer.content.strip())
        and asked.tool_calls is None
        and answer.tool_calls is None
        and asked.name is None
        and answer.name is None
        and asked.tool_call_id is None
        and answer.tool_call_id is None
        and _is_text(asked.content)
        and _is_text(answer.content)
    )


def _is_text(text: str) -> bool:
    """Whether no half character is in it."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _characters(row: Row, field: str, text: str) -> None:
    if not _is_text(text) and (fault := not_text(text.replace("\0", " "), row.row, row.line)):
        message = say(
            N_("Row {row}: “{field}” holds half a character, which is not valid text."), row=row.row, field=field
        )
        row.faults.append(Fault("not_utf8", message, row.row, row.line, field, excerpt=fault.excerpt))


def _writable(row: Row, example: Example) -> None:
    """Whether names, tools and calls, which are kept as they came, can be written down again."""
    sides = (*example.turns, *(example.chosen or ()), *(example.rejected or ()))
    if row.faults or not (example.tools or any(t.tool_calls or t.name or t.tool_call_id for t in sides)):
        return
    try:
        example.line_of_json()
    except TypeError as error:  # orjson's JSONEncodeError
        if "surrogates" in str(error):
            text = N_("Row {row}: “{field}” holds half a character, which is not valid text.")
            row.add("not_utf8", say(text, row=row.row, field="tools"), "tools")
        else:
            text = N_("Row {row}: a tool or a call holds a number that is too large, or is nested too deep.")
            row.add("wrong_type", say(text, row=row.row), "tools")


def _answers(row: Row, turns: tuple[Turn, ...], field: str | None) -> None:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not any(turn.weight > 0 for turn in answers):
        text = N_("Row {row} has no assistant turn, so there is nothing to learn from it.")
        if answers:
            text = N_("Row {row}: every answer has the weight 0, so there is nothing to learn from it.")
        row.add("no_answer", say(text, row=row.row), field)
    if any(turn.weight > 0 and not turn.content.strip() and not turn.tool_calls for turn in answers):
        row.add("empty_answer", say(N_("Row {row}: the answer is empty."), row=row.row), field, EMPTY)


def _order(row: Row, turns: tuple[Turn, ...]) -> None:
    """At most one warning a row: the first thing that is out of order."""
    said = [turn for turn in turns if turn.role != "system"]
    text = None
    if any(turn.role == "system" for turn in turns[_leading(turns) :]):
        text = N_("Row {row}: a system turn stands behind other turns; it will be put in front.")
    elif said and said[0].role == "assistant":
        text = N_("Row {row} begins with an assistant turn; there is no question before it.")
    for one, other in pairwise(said):
        if text is None and one.role == other.role == "user":
            text = N_("Row {row}: two user turns in a row; they will be joined.")
        if text is None and one.role == other.role == "assistant" and not (one.tool_calls or other.tool_calls):
            text = N_("Row {row}: two assistant turns in a row; they will be joined.")
    if text is None and said and said[-1].role != "assistant" and any(turn.role == "assistant" for turn in said):
        text = N_("Row {row} ends with a turn that has no answer; nothing is learned from that turn.")
    if text:
        row.add("bad_turn_order", say(text, row=row.row))


def _leading(turns: tuple[Turn, ...]) -> int:
    return next((n for n, turn in enumerate(turns) if turn.role != "system"), len(turns))
