"""Single rows put right: turns joined, roles renamed, texts cut. Knows nothing of files or of other rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from afina.data.conversations import ROLE_WORDS, judge
from afina.data.entries import Entry, with_texts
from afina.data.examples import Example, Turn
from afina.data.formats import convert, guess, names_of, plain_name
from afina.data.json_rows import Record
from afina.data.masks import masked
from afina.data.template import ChatTokenizer

OTHER_ROLES: dict[str, str] = {
    **dict.fromkeys(
        [
            "bot",
            "ai",
            "model",
            "chatbot",
            "chatgpt",
            "claude",
            "gemini",
            "bard",
            "llm",
            "agent",
            "response",
            "answer",
            "reply",
        ],
        "assistant",
    ),
    **dict.fromkeys(["asistente", "assistente", "asisten", "resposta", "jawaban", "hatan", "output"], "assistant"),
    **dict.fromkeys(
        ["customer", "client", "person", "question", "prompt", "instruction", "input", "me", "you", "student"], "user"
    ),
    **dict.fromkeys(["uzuariu", "usuario", "pengguna", "pergunta", "pertanyaan", "instrusaun", "instrucao"], "user"),
    **dict.fromkeys(["context", "sistema", "sistem", "persona", "instructions"], "system"),
    **dict.fromkeys(["tool_response", "tool_result", "function_response", "ipython"], "tool"),
}
"""Roles that people write and that no format knows, by what they mean."""


def of(example: Example, entry: Entry) -> Entry:
    """A row that now is `example`; what is wrong with it is judged anew."""
    return Entry(entry.row, entry.line, example, None, judge(example))


def without(entry: Entry, code: str) -> Entry:
    """The row without the finding `code`."""
    return Entry(entry.row, entry.line, entry.example, entry.raw, [f for f in entry.faults if f.code != code])


def with_turns_joined(entry: Entry) -> Entry:
    """System turns in front, turns of one side in a row as one; a first answer and a last question without partner go."""
    example = entry.example
    if example is None or not example.turns or example.chosen is not None:
        return entry
    system = [turn for turn in example.turns if turn.role == "system"]
    said: list[Turn] = []
    for turn in example.turns:
        if turn.role == "system":
            continue
        last = said[-1] if said else None
        joins = last is not None and last.role == turn.role and turn.role in ("user", "assistant")
        if last is None or not joins or last.tool_calls or turn.tool_calls:
            said.append(turn)
        else:
            both = "\n\n".join(text for text in (last.content, turn.content) if text.strip())
            said[-1] = replace(last, content=both, weight=min(last.weight, turn.weight))
    answers = sum(turn.role == "assistant" for turn in said)
    if said and said[0].role == "assistant" and answers > 1:
        said = said[1:]
        answers -= 1
    while said and said[-1].role != "assistant" and answers:
        said.pop()
    turns = (*_one_system(system), *said)
    return entry if turns == example.turns else of(replace(example, turns=turns), entry)


def _one_system(turns: list[Turn]) -> list[Turn]:
    return [replace(turns[0], content="\n\n".join(turn.content for turn in turns))] if len(turns) > 1 else turns


def with_known_roles(entry: Entry) -> Entry | None:
    """Unknown roles by what their names mean, else by whose turn it is; None where that makes no conversation."""
    if not isinstance(entry.raw, dict) or entry.row is None:
        return None
    raw: dict[Any, Any] = copy.deepcopy(entry.raw)
    for name, messages in raw.items():
        if plain_name(str(name)) in ("messages", "conversations", "conversation") and isinstance(messages, list):
            _rename(messages)
    form = guess(names_of(raw))
    if form is None:
        return None
    example, faults = convert(Record(entry.row, entry.line, raw), form)
    if example is None:
        return None
    return Entry(entry.row, entry.line, example, None, faults)


def _rename(messages: list[Any]) -> None:
    before = ""
    for message in messages:
        if not isinstance(message, dict):
            continue
        key = "role" if "role" in message else "from"
        given = message.get(key)
        if isinstance(given, str):
            known = ROLE_WORDS.get(given.strip().lower()) or OTHER_ROLES.get(plain_name(given))
            message[key] = known or ("assistant" if before == "user" else "user")
            before = message[key]


def masking(code: str) -> Callable[[Entry], Entry]:
    """A function that puts a placeholder where a row holds what `code` (secret, personal_data) names."""

    def hide(entry: Entry) -> Entry:
        if entry.example is None:
            return entry
        example = with_texts(entry.example, lambda text: masked(text, code))
        return entry if example is entry.example else of(example, entry)

    return hide


def fitting(
    counter: ChatTokenizer, max_length: int, system_prompt: str | None = None
) -> Callable[[Entry], Entry | None]:
    """A function that cuts the end of a row so that it fits `max_length` tokens: late turns first, then the last answer.

    None where not even the question fits.
    """

    def cut(entry: Entry) -> Entry | None:
        example = entry.example
        if example is None or not example.turns:
            return entry
        while (over := counter.encode(example, max_length=max_length, system_prompt=system_prompt).cut) > 0:
            shorter = _without_last_exchange(example) or _last_answer_cut(counter, example, over)
            if shorter is None:
                return None
            example = shorter
        return entry if example is entry.example else of(example, entry)

    return cut


def _without_last_exchange(example: Example) -> Example | None:
    """The conversation without its last question and answer; None when it has only one."""
    places = [number for number, turn in enumerate(example.turns) if turn.role == "user"]
    if len(places) < 2 or not any(turn.role == "assistant" for turn in example.turns[: places[-1]]):
        return None
    return replace(example, turns=example.turns[: places[-1]])


def _last_answer_cut(counter: ChatTokenizer, example: Example, over: int) -> Example | None:
    """The last answer shorter by `over` tokens, at the end of a word; None when nothing of it would be left."""
    *before, last = example.turns
    if last.role != "assistant":
        return replace(example, turns=tuple(before)) if before else None
    share = max(1, counter.count(Example((last,))))
    text = last.content[: int(len(last.content) * max(0.0, 1 - (over + 1) / share))]
    text = text.rpartition(" ")[0].rstrip() if " " in text else text
    if not text.strip() or len(text) >= len(last.content):
        return None
    return replace(example, turns=(*before, replace(last, content=text)))
