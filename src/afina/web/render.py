"""Pages from templates: one Jinja2 environment, and what every template may use.

Every template gets `_`, `ngettext`, `lang`, `languages` (code and own name), `theme`, `token`, `afina_version`, `path`,
`static(name)`, `active_runs`, and the filters `number`, `percent`, `size`, `duration`, `date`, `datetime`, `say`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from starlette.requests import Request
from starlette.responses import HTMLResponse

from afina import __version__
from afina.i18n import LANGUAGES, Translator
from afina.web.language import speaker

FOLDER = Path(__file__).parent / "templates"
THEME_COOKIE = "afina_theme"
THEMES = ("auto", "light", "dark")


def page(
    request: Request, name: str, status: int = 200, headers: Mapping[str, str] | None = None, **context: Any
) -> HTMLResponse:
    """The template `name` in the reader's language and theme."""
    write = speaker(request)
    theme = request.cookies.get(THEME_COOKIE, "auto")
    values: dict[str, Any] = {
        "_": write.gettext,
        "ngettext": write.ngettext,
        "write": write,
        "lang": write.lang,
        "languages": list(LANGUAGES.items()),
        "theme": theme if theme in THEMES else "auto",
        "token": request.scope.get("afina.token", ""),
        "signed_in": request.scope.get("afina.signed_in", False),
        "afina_version": __version__,
        "path": request.url.path,
        "static": request.app.state.static.url,
        "active_runs": [],
    }
    text = environment().get_template(name).render({**values, **context})
    kept = {"Content-Language": write.lang, "Cache-Control": "no-cache, private", "Vary": "Cookie, Accept-Language"}
    return HTMLResponse(text, status, headers={**kept, **(headers or {})})


@cache
def environment() -> Environment:
    """The environment, made once a process."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    for name, filter_ in _FILTERS.items():
        made.filters[name] = filter_
    return made


def _writer(context: Context) -> Translator:
    write: Translator = context["write"]
    return write


@pass_context
def _number(context: Context, value: float | None, digits: int | None = None) -> str:
    return _writer(context).number(value, digits)


@pass_context
def _percent(context: Context, value: float | None, digits: int = 1) -> str:
    return _writer(context).percent(value, digits)


@pass_context
def _size(context: Context, value: float | None) -> str:
    return _writer(context).size(value)


@pass_context
def _duration(context: Context, value: float | None) -> str:
    return _writer(context).duration(value)


@pass_context
def _date(context: Context, value: float | None) -> str:
    return _writer(context).date(value)


@pass_context
def _datetime(context: Context, value: float | None) -> str:
    return _writer(context).datetime(value)


@pass_context
def _say(context: Context, value: Any) -> str:
    return _writer(context).write(value)


_FILTERS = {
    "number": _number,
    "percent": _percent,
    "size": _size,
    "duration": _duration,
    "date": _date,
    "datetime": _datetime,
    "say": _say,
}
