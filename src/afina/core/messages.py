"""Texts a person reads, kept apart from their values so that each can be shown in any language.

Knows nothing of catalogues: the text is written in English here, marked with `N_`, and translated where it is shown
(`afina.i18n`). Placeholders are named, `{row}`, in the manner of `str.format`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def N_(text: str) -> str:
    """Mark `text` for the catalogues and return it unchanged."""
    return text


@dataclass(frozen=True)
class Message:
    """A sentence (`template`, the catalogue's key) and the values that go into it."""

    template: str
    values: dict[str, Any] = field(default_factory=dict)

    def text(self, translate: Callable[[str], str] = str, show: Callable[[Any], Any] = str) -> str:
        """The finished sentence; `translate` maps the template, `show` turns each value into words.

        Only the template is formatted, so braces in a person's own data are harmless.
        """
        return translate(self.template).format_map({name: show(value) for name, value in self.values.items()})

    def as_json(self) -> dict[str, Any]:
        """`text` in English for programs that only print, `template` and `values` for those that translate."""
        values = {name: value.as_json() if isinstance(value, Message) else value for name, value in self.values.items()}
        return {"text": self.text(), "template": self.template, "values": values}

    def __str__(self) -> str:
        return self.text()


def say(template: str, **values: Any) -> Message:
    """Build a `Message`; the template must be a literal, for it is also what the catalogues are extracted from."""
    return Message(template, values)
