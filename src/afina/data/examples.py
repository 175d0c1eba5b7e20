"""What a dataset is made of once it has been read: turns and examples. Knows nothing of files or tokens.

An example is one of three: a conversation (`turns`), a document (`text`), or a preference (`turns` is the prompt, `chosen`
and `rejected` are what may follow). `as_json` is the canonical form; versions and duplicates are decided on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import orjson

from afina.data.faults import shorten

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)
Format = Literal["pairs", "plain", "alpaca", "table", "messages", "sharegpt", "text", "preference"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing said. `weight` 0 on an assistant turn means: read it, do not learn it.

    `tool_calls` are kept as they came (OpenAI's shape); `name` and `tool_call_id` belong to tool turns.
    """

    role: Role
    content: str
    weight: float = 1.0
    tool_calls: tuple[Any, ...] | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def as_json(self) -> dict[str, Any]:
        """OpenAI's message object, without the fields that carry nothing."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.weight != 1.0:
            message["weight"] = self.weight
        if self.tool_calls is not None:
            message["tool_calls"] = list(self.tool_calls)
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> Turn:
        """The inverse of `as_json`; for what this program wrote, not for files of people."""
        calls = message.get("tool_calls")
        return cls(
            message["role"],
            message["content"],
            float(message.get("weight", 1.0)),
            None if calls is None else tuple(calls),
            message.get("name"),
            message.get("tool_call_id"),
        )


@dataclass(frozen=True, slots=True)
class Example:
    """One row. `row` counts from 1; `line` is where it begins in the file, where the file has lines."""

    turns: tuple[Turn, ...] = ()
    text: str | None = None
    row: int = 0
    line: int | None = None
    tools: tuple[Any, ...] | None = None
    chosen: tuple[Turn, ...] | None = None
    rejected: tuple[Turn, ...] | None = None

    @property
    def answers(self) -> list[Turn]:
        """The turns that can be learned: what the assistant said, unless its weight is 0."""
        return [turn for turn in self.turns if turn.role == "assistant" and turn.weight > 0]

    @property
    def excerpt(self) -> str:
        """Its beginning on one line, for messages."""
        return shorten(self.text if self.text is not None else " / ".join(turn.content[:200] for turn in self.turns))

    def as_json(self) -> dict[str, Any]:
        """The canonical form: {"messages": […]}, {"text": …} or {"prompt", "chosen", "rejected"}. No row, no line."""
        if self.text is not None:
            return {"text": self.text}
        turns = [turn.as_json() for turn in self.turns]
        tools = {} if self.tools is None else {"tools": list(self.tools)}
        if self.chosen is not None and self.rejected is not None:
            chosen, rejected = ([turn.as_json() for turn in side] for side in (self.chosen, self.rejected))
            return {"prompt": turns, "chosen": chosen, "rejected": rejected, **tools}
        return {"messages": turns, **tools}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], row: int = 0, line: int | None = None) -> Example:
        """The inverse of `as_json`; for what this program wrote, not for files of people."""
        if "text" in data:
            return cls(text=data["text"], row=row, line=line)
        tools = tuple(data["tools"]) if data.get("tools") is not None else None
        if "chosen" in data:
            return cls(
                _turns(data["prompt"]),
                row=row,
                line=line,
                tools=tools,
                chosen=_turns(data["chosen"]),
                rejected=_turns(data["rejected"]),
            )
        return cls(_turns(data["messages"]), row=row, line=line, tools=tools)

    def line_of_json(self) -> bytes:
        """The canonical form as one line of UTF-8 JSON with sorted keys, without the line's end."""
        return orjson.dumps(self.as_json(), option=orjson.OPT_SORT_KEYS)

    def key(self) -> bytes:
        """16 bytes that are equal for two examples with the same content, whatever their rows."""
        return hashlib.blake2b(self.line_of_json(), digest_size=16).digest()


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    return tuple(Turn.from_json(message) for message in messages)
