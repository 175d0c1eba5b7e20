"""The language of a request: the reader's choice in a cookie, else what the browser asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import HTTPConnection

from afina.core.messages import Message
from afina.i18n import Translator, negotiate, translator

COOKIE = "afina_language"


def speaker(connection: HTTPConnection) -> Translator:
    """The translator for whoever sent this request (or opened this socket)."""
    return translator(negotiate(connection.cookies.get(COOKIE), connection.headers.get("accept-language")))


def localise(value: Any, write: Translator) -> Any:
    """A copy of plain JSON in which the `text` of every stored message is in the reader's language."""
    if isinstance(value, dict):
        if "template" in value and "text" in value:
            return {**value, "text": write.write(value)}
        return {key: localise(item, write) for key, item in value.items()}
    if isinstance(value, list):
        return [localise(item, write) for item in value]
    return value


def sentence(value: Message | Mapping[str, Any] | str | None, write: Translator) -> str | None:
    """A message in whichever form it comes, written out; None stays None."""
    return None if value is None else write.write(value)
