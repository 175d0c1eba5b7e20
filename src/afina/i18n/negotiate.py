"""Which language a reader gets: what they chose before, else what the browser or the terminal asks for."""

from __future__ import annotations

from collections.abc import Mapping

from afina.i18n.catalogue import LANGUAGE

DEFAULT = "en"
# `tdt` is Tetun Dili, `in` the old code of Indonesian; readers of Malay (`ms`) read Indonesian.
_SAME = {"tet": "tet", "tdt": "tet", "pt": "pt", "id": "id", "in": "id", "ms": "id", "en": "en"}


def negotiate(cookie: str | None, accept_language: str | None) -> str:
    """The language of a request: the cookie's when it is one of ours, else the best of `Accept-Language`, else English."""
    if cookie in LANGUAGE:
        return str(cookie)
    wishes = [_wish(part) for part in (accept_language or "")[:1000].split(",")]
    for _, tag in sorted(wishes, key=lambda wish: -wish[0]):
        if code := _ours(tag):
            return code
    return DEFAULT


def from_environment(environment: Mapping[str, str]) -> str:
    """The language of a terminal: `AFINA_LANGUAGE`, else the first of LC_ALL, LC_MESSAGES, LANG that is set."""
    for name in ("AFINA_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if environment.get(name):
            return _ours(environment[name]) or DEFAULT
    return DEFAULT


def _wish(part: str) -> tuple[float, str]:
    """One entry of `Accept-Language` as (quality, tag); a quality of 0 or one that is no number drops the tag."""
    tag, _, rest = part.partition(";")
    name, _, value = rest.strip().partition("=")
    if name.strip() != "q":
        return 1.0, tag
    try:
        quality = float(value)
    except ValueError:
        return 0.0, ""
    return (quality, tag) if quality > 0 else (0.0, "")


def _ours(tag: str) -> str | None:
    return _SAME.get(tag.strip().lower().replace("_", "-").split("-")[0].split(".")[0])
