"""Rows with named fields as examples: which format a row has, and how each becomes turns or text.

Names of fields are compared in lower case, without accents, spaces as underscores. Knows nothing of files.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from afina.core.messages import N_, Message, say
from afina.data.conversations import Row, judge, turns_of
from afina.data.examples import Example, Format, Role, Turn
from afina.data.faults import Fault, shorten, shown
from afina.data.json_rows import Record, Records
from afina.data.labels import SIDES, plain_word


def _words(text: str) -> list[str]:
    return text.split()


PROMPTS = _words(
    "prompt question instruction query user human q input source src "
    "pergunta instrucao questao usuario instrusaun uzuariu kestaun pertanyaan instruksi pengguna soal"
)
ANSWERS = _words(
    "completion answer response output assistant target tgt reply a "
    "resposta saida assistente asistente hatan jawaban keluaran respons asisten"
)
CONTEXTS = _words("input context konteks kontekstu contexto entrada masukan")
PAIRS = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))
"""Names of the better and the worse answer of a preference."""
CONVERSATIONS = ("messages", "conversations", "conversation")
REMEMBERED = 100
"""Characters of a field's name; what is longer is no name worth remembering."""
FORMS: dict[str, str] = {
    "messages": N_("conversations (messages)"),
    "sharegpt": N_("conversations (ShareGPT)"),
    "preference": N_("preferences (chosen and rejected)"),
    "alpaca": N_("instruction and output"),
    "table": N_("prompt and answer"),
    "text": N_("documents"),
    "pairs": N_("questions and answers in a text"),
    "plain": N_("plain text"),
}
"""What a person calls each form of a row."""

Fields = abc.Mapping[str, Any]
Columns = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Mapping:
    """Which columns of a table mean what, by their plain names (see `plain_name`): a question and its answer, perhaps with
    a system text and a context that belongs to the question; or a text alone. See `mapping.py`.
    """

    prompt: str | None = None
    answer: str | None = None
    text: str | None = None
    system: str | None = None
    context: str | None = None

    @property
    def form(self) -> Format:
        """The format that rows read with it have."""
        return "text" if self.text is not None else "table"


def names_of(value: abc.Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of a row under their plain names; the first one wins where two become equal."""
    plain: dict[str, Any] = {}
    for name, content in value.items():
        plain.setdefault(plain_name(str(name)), content)
    return plain


def plain_name(name: str) -> str:
    """ "Instrução " → "instrucao", "Expected Output" → "expected_output"."""
    return _plain(name) if len(name) > REMEMBERED else _known_plain(name)


@lru_cache(maxsize=4096)
def _known_plain(name: str) -> str:
    return _plain(name)


def _plain(name: str) -> str:
    return plain_word(name.strip().lstrip("\ufeff")).replace(" ", "_").replace("-", "_")


def guess(fields: Fields) -> Format | None:
    """The format that a row with all these fields has, None when it has none completely."""
    if pair_of(fields):
        return "preference"
    if "messages" in fields:
        return "messages"
    for name in ("conversations", "conversation"):
        if name in fields:
            first = next(iter(fields[name]), None) if isinstance(fields[name], list | tuple) else None
            return "messages" if isinstance(first, dict) and "role" in first else "sharegpt"
    if "instruction" in fields and "output" in fields:
        return "alpaca"
    if columns_of(fields):
        return "table"
    return "text" if "text" in fields else None


def guess_partly(fields: Fields) -> Format | None:
    """The format that a row without some of its fields seems to be meant for."""
    if "instruction" in fields or {"input", "output"} & fields.keys():
        return "alpaca"
    if any(name in fields for name in (*PROMPTS, *ANSWERS)):
        return "table"
    return "preference" if any(name in fields for pair in PAIRS for name in pair) else None


def pair_of(fields: Fields) -> Columns | None:
    """The names of the better and the worse answer's column."""
    return next((pair for pair in PAIRS if pair[0] in fields and pair[1] in fields), None)


def columns_of(fields: Fields) -> Columns | None:
    """The names of the question's and the answer's column."""
    answer = next((name for name in ANSWERS if name in fields), None)
    prompt = next((name for name in PROMPTS if name in fields and name != answer), None)
    return (prompt, answer) if prompt and answer else None


def examples_of(
    records: Records, form: Format, columns: Columns | None = None, mapping: Mapping | None = None
) -> Iterator[Example | Fault]:
    """The examples of raw rows, each behind its warnings; a row with an error gives its faults only."""
    for record in records:
        if isinstance(record, Fault):
            yield record
            continue
        example, faults = convert(record, form, columns, mapping)
        if not faults and example is not None:
            yield example
            continue
        yield from faults
        if example is not None and not any(fault.severity == "error" for fault in faults):
            yield example


def convert(
    record: Record, form: Format, columns: Columns | None = None, mapping: Mapping | None = None
) -> tuple[Example | None, list[Fault]]:
    """The example of a raw row as far as it can be made out, and what is wrong with it; one with an error is not for use.

    `columns`: those of a table's first whole row.
    """
    row = Row(record.row, record.line, record.value)
    row.columns = columns
    if not isinstance(record.value, dict):
        message = say(N_("Row {row} is {value}, not an object with fields."), row=record.row, value=shown(record.value))
        row.add("wrong_type", message, None, shown(record.value))
        return None, row.faults
    names, other = _shape(tuple(record.value)) if _ordinary(record.value) else (None, None)
    fields = names_of(record.value) if names is None else dict(zip(names, record.value.values(), strict=True))
    if mapping is not None:
        fields = _mapped(fields, mapping)
        row.names = {name: getattr(mapping, name) for name in ("prompt", "answer", "text", "system", "context")}
        row.columns = ("prompt", "answer")
    if names is None:
        other = guess(fields)
    if mapping is None and other is not None and other != form and not _also(fields, form):
        row.add("mixed_formats", _mixed(record.row, form, other), None, other)
        form = other
    example = _CONVERT[form](row, fields)
    if example is not None:
        judge(example, row)
    return example, row.faults


def _ordinary(fields: dict[Any, Any]) -> bool:
    """Whether the names are few and short enough to be remembered."""
    return len(fields) <= 16 and max(map(len, map(str, fields)), default=0) <= REMEMBERED


@lru_cache(maxsize=256)
def _shape(keys: tuple[Any, ...]) -> tuple[list[str] | None, Format | None]:
    """The plain names of a row's fields and the format they make; None where they do not tell it all: where two names become
    one, or the format shows only in the values. Rows of one file mostly have the same fields."""
    names = [plain_name(str(key)) for key in keys]
    if len(set(names)) < len(names) or {"conversations", "conversation"} & set(names):
        return None, None
    return names, guess(dict.fromkeys(names))


def _mapped(fields: Fields, mapping: Mapping) -> dict[str, Any]:
    """The fields that a mapping speaks of, under the names that say what they mean."""
    names = {name: getattr(mapping, name) for name in ("prompt", "answer", "text", "system", "context")}
    return {name: fields[column] for name, column in names.items() if column is not None and column in fields}


def _also(fields: Fields, form: Format) -> bool:
    """Whether a row that looks like another format can be read as `form` too (a table may have a column more)."""
    if form == "table":
        return columns_of(fields) is not None
    return form == "text" and "text" in fields


def _mixed(row: int, form: str, other: str) -> Any:
    if row > 2:
        return say(
            N_("Rows 1 to {last} are {form}, row {row} is {other}."),
            last=row - 1,
            row=row,
            form=Message(FORMS[form]),
            other=Message(FORMS[other]),
        )
    return say(
        N_("Row {row} is {other}, but the other rows are {form}."),
        row=row,
        form=Message(FORMS[form]),
        other=Message(FORMS[other]),
    )


def _text(row: Row, fields: Fields, name: str, required: bool = True) -> str | None:
    """The text in field `name`; None with a fault noted when it is missing or no text."""
    value = fields.get(name)
    if isinstance(value, str):
        return value
    if value is None:
        if required:
            row.missing(name, [key for key in fields if fields[key] is not None])
            return None
        return ""
    row.wrong_type(name, value)
    return None


def _tools(row: Row, fields: Fields) -> tuple[Any, ...] | None:
    tools = fields.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = orjson.loads(tools)
        except ValueError:
            row.wrong_type("tools", tools, "list")
            return None
    if not tools:
        return None
    if not isinstance(tools, list | tuple):
        row.wrong_type("tools", tools, "list")
        return None
    return tuple(tools)


def _conversation(row: Row, fields: Fields) -> Example | None:
    name = next((key for key in CONVERSATIONS if key in fields), None)
    tools = _tools(row, fields)
    row.answer = name
    if name is None or fields[name] is None:
        row.missing(name or "messages", [key for key in fields if fields[key] is not None])
        return None
    turns = turns_of(row, name, fields[name])
    system = _text(row, fields, "system", required=False)
    if turns is None or system is None:
        return None
    if system.strip() and not any(turn.role == "system" for turn in turns):
        turns = (Turn("system", system), *turns)
    return Example(turns, row=row.row, line=row.line, tools=tools)


def _alpaca(row: Row, fields: Fields) -> Example | None:
    instruction = _text(row, fields, "instruction")
    extra = _text(row, fields, "input", required=False)
    output = _text(row, fields, "output")
    system = _text(row, fields, "system", required=False)
    history = _history(row, fields.get("history"))
    row.question, row.answer = "instruction", "output"
    if instruction is None or extra is None or output is None or system is None or history is None:
        return None
    turns = [*history, Turn("user", _with(instruction, extra)), Turn("assistant", output)]
    return Example(tuple(_after_system(system, turns)), row=row.row, line=row.line)


def _with(question: str, extra: str) -> str:
    """An instruction and the input it works on, as one question."""
    if not extra.strip():
        return question
    return f"{question}\n{extra}" if question.strip() else extra


def _after_system(system: str, turns: list[Turn]) -> list[Turn]:
    return [Turn("system", system), *turns] if system.strip() else turns


def _history(row: Row, value: Any) -> list[Turn] | None:
    if isinstance(value, str):
        try:
            value = orjson.loads(value) if value.strip() else None
        except ValueError:
            row.wrong_type("history", value, "list")
            return None
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        row.wrong_type("history", value, "list")
        return None
    turns: list[Turn] = []
    for number, pair in enumerate(value, 1):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            row.wrong_type(f"history.{number}", pair, "list")
            return None
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def _table(row: Row, fields: Fields) -> Example | None:
    columns = row.columns if row.names else columns_of(fields) or row.columns
    if columns is None:
        has_answer = any(name in fields for name in ANSWERS if SIDES.get(name) != "input")
        row.missing("prompt" if has_answer else "answer", fields)
        return None
    prompt_name, answer_name = row.question, row.answer = columns
    prompt = _side(row, fields, prompt_name, "user")
    answer = _side(row, fields, answer_name, "assistant")
    context = next((name for name in CONTEXTS if name in fields and name not in columns), None)
    extra = _text(row, fields, context, required=False) if context else ""
    system = _text(row, fields, "system", required=False)
    if prompt is None or answer is None or extra is None or system is None:
        return None
    if extra.strip() and len(prompt) == 1:
        prompt = [Turn("user", _with(prompt[0].content, extra))]
    return Example(
        tuple(_after_system(system, [*prompt, *answer])), row=row.row, line=row.line, tools=_tools(row, fields)
    )


def _side(row: Row, fields: Fields, name: str, role: Role) -> list[Turn] | None:
    """A column that holds a text, a message or a list of messages."""
    if isinstance(fields.get(name), list | tuple | dict):
        turns = turns_of(row, name, [fields[name]] if isinstance(fields[name], dict) else fields[name])
        return None if turns is None else list(turns)
    text = _text(row, fields, name)
    return None if text is None else [Turn(role, text)]


def _plain_text(row: Row, fields: Fields) -> Example | None:
    text = _text(row, fields, "text")
    return None if text is None else Example(text=text, row=row.row, line=row.line)


def _asked(row: Row, fields: Fields) -> list[Turn] | None:
    """What comes before the two answers: a prompt, a conversation, or an instruction with its input."""
    name = next((key for key in ("prompt", *CONVERSATIONS, *PROMPTS) if fields.get(key) is not None), None)
    turns = [] if name is None else _side(row, fields, name, "user")
    extra = _text(row, fields, "input", required=False) if name == "instruction" else ""
    if turns and extra and len(turns) == 1:
        return [Turn("user", _with(turns[0].content, extra))]
    return None if extra is None else turns


def _preference(row: Row, fields: Fields) -> Example | None:
    names = pair_of(fields) or PAIRS[0]
    prompt = _asked(row, fields)
    chosen, rejected = (_side(row, fields, name, "assistant") for name in names)
    system = _text(row, fields, "system", required=False)
    if prompt is None or chosen is None or rejected is None or system is None:
        return None
    if not any(turn.role == "system" for turn in prompt):
        prompt = _after_system(system, prompt)
    shared = 0  # chosen and rejected may both begin with the prompt
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    common = chosen[:shared]
    start = tuple(common if common and (not prompt or common[-len(prompt) :] == prompt) else [*prompt, *common])
    tools = _tools(row, fields)
    return Example(
        start, row=row.row, line=row.line, tools=tools, chosen=tuple(chosen[shared:]), rejected=tuple(rejected[shared:])
    )


_CONVERT: dict[Format, Callable[[Row, Fields], Example | None]] = {
    "messages": _conversation,
    "sharegpt": _conversation,
    "alpaca": _alpaca,
    "table": _table,
    "text": _plain_text,
    "preference": _preference,
}


def unknown(names: list[str]) -> Fault:
    """No row has fields that make a format."""
    shown_names = ", ".join(shorten(name, 40) for name in names[:12]) or "–"
    message = say(
        N_("It is not clear which columns hold the questions and the answers. Found: {names}."), names=shown_names
    )
    return Fault("unknown_format", message, value=shown_names)
