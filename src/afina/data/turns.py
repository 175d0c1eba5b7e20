"""Turns as a chat template gets them: system text first, turns of one role joined, and what to try when it refuses.

Knows nothing of Jinja or tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from afina.data.examples import Turn


@dataclass(frozen=True)
class Said:
    """A turn after joining: what the template gets, and whether its content is learned.

    calls: tool calls of an assistant turn; more: further fields of the message (name, tool_call_id).
    """

    role: str
    content: str
    learned: bool = False
    calls: tuple[Any, ...] = ()
    more: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The form that templates read."""
        calls = {"tool_calls": [_parsed(call) for call in self.calls]} if self.calls else {}
        return {"role": self.role, "content": self.content, **calls, **dict(self.more)}

    def fits(self, text: str) -> bool:
        """Whether `text`, written by a template, holds what must not be lost: the system text, the names of the tools called."""
        if self.role == "system":
            return self.content.strip() in text
        return all(_name(call) in text for call in self.calls)

    def then(self, later: Said) -> Said:
        """This turn and the next of the same role as one; learned only where both are."""
        content = "\n\n".join(part for part in (self.content, later.content) if part)
        return replace(self, content=content, learned=self.learned and later.learned, calls=self.calls + later.calls)


def joined(turns: Iterable[Turn], system_prompt: str | None) -> list[Said]:
    """System texts first and as one, then turns of the same role in a row joined; `system_prompt` where there is none."""
    system: list[str] = []
    said: list[Said] = []
    for turn in turns:
        if turn.role == "system":
            system.append(turn.content)
            continue
        more = tuple((key, value) for key in ("name", "tool_call_id") if (value := getattr(turn, key)) is not None)
        learned = turn.role == "assistant" and turn.weight > 0
        said.append(Said(turn.role, turn.content, learned, tuple(turn.tool_calls or ()), more))
    if not system and system_prompt:
        system = [system_prompt]
    return ([Said("system", "\n\n".join(system))] if system else []) + _merged(said)


def forms(messages: list[Said]) -> Iterator[list[Said]]:
    """`messages`, and then what to try when a template refuses them, from the least change to the largest.

    Tool calls as text; the system text at the beginning of the first question; tool results as questions; an empty
    question before an answer that comes first.
    """
    yield messages
    if any(message.calls for message in messages):
        messages = [_spelt_out(message) for message in messages]
        yield messages
    if messages and messages[0].role == "system":
        messages = _folded(messages)
        yield messages
    if any(message.role == "tool" for message in messages):
        messages = _merged([Said("user", m.content) if m.role == "tool" else m for m in messages])
        yield messages
    if messages and messages[0].role == "assistant":
        yield [Said("user", ""), *messages]


def _folded(messages: list[Said]) -> list[Said]:
    """The system text at the beginning of the first question."""
    system, *rest = messages
    return _merged([Said("user", system.content), *rest])


def _merged(messages: list[Said]) -> list[Said]:
    merged: list[Said] = []
    for message in messages:
        if merged and merged[-1].role == message.role != "tool":
            merged[-1] = merged[-1].then(message)
        else:
            merged.append(message)
    return merged


def _spelt_out(message: Said) -> Said:
    """Tool calls in the text, in the tags most open models use."""
    calls = [f"<tool_call>\n{json.dumps(_parsed(call), ensure_ascii=False)}\n</tool_call>" for call in message.calls]
    return replace(message, content="\n".join(part for part in (message.content, *calls) if part), calls=())


def _parsed(call: Any) -> Any:
    """A tool call whose arguments are an object: OpenAI sends them as a string of JSON, templates expect the object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except json.JSONDecodeError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _name(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, dict) else {}
    return str(function.get("name", "")) if isinstance(function, dict) else ""
