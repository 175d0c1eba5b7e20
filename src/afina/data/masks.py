"""Secrets and personal data taken out of a text, each replaced by a neutral word in brackets that is the same in all languages.

What they are is known by `secret.py` and `personal.py`. Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from afina.data.personal import ACCOUNT, CARD, EMAIL, PHONE, personal_in
from afina.data.secret import secrets_in

SECRET = "[SECRET]"  # noqa: S105  what stands in its place
INSTEAD: dict[str, str] = {EMAIL: "[EMAIL]", PHONE: "[PHONE]", CARD: "[CARD]", ACCOUNT: "[ACCOUNT]"}
"""What stands in the place of personal data; of anything else it is SECRET."""

_FIND: dict[str, Callable[[str], Iterator[tuple[int, int, str]]]] = {
    "secret": secrets_in,
    "personal_data": personal_in,
}


def masked(text: str, code: str) -> str:
    """`text` without what `code` (secret, personal_data) looks for; the very same text when it holds nothing of it."""
    while places := sorted(_FIND[code](text), key=lambda place: (place[0], -place[1])):
        parts: list[str] = []
        at = 0
        for start, end, kind in places:
            if start >= at:
                parts += [text[at:start], INSTEAD.get(kind, SECRET)]
            at = max(at, end)
        text = "".join([*parts, text[at:]])
    return text
