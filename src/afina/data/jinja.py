"""Chat templates: the Jinja programs that come with models, run in a sandbox, and two of our own for models without.

Templates are written by strangers. They run in Jinja's immutable sandbox with the same few helpers that Hugging Face
gives them (`raise_exception`, `strftime_now`, `tojson`, `namespace`, loop controls, the `generation` tag), so that a
model sees here exactly the text it was trained on. Knows nothing of tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say

Messages = Sequence[Mapping[str, Any]]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + end_of_turn + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML; see `built_in` for `end_of_turn`."""

PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + end_of_turn + '\n\n' }}"
    "{% else %}{{ 'User: ' + message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Labels only, no special token but the one that ends an answer."""

BUILT_IN = {"chatml": CHATML, "plain": PLAIN}


def built_in(name: str, end_of_turn: str, adds_bos: bool) -> str:
    """One of our own templates, complete in itself: with the text that ends an answer, and BOS where the model wants it."""
    begin = "{{ bos_token }}" if adds_bos else ""
    return f"{{% set end_of_turn = {json.dumps(end_of_turn)} %}}{begin}{BUILT_IN[name]}"


class _Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks answers in some templates; here its body is simply rendered."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Replace the tag by its body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore, which would lead out of the sandbox."""

    def __init__(*args: Any, **values: Any) -> None:
        for name in dict(*args[1:], **values):
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a chat template may not use the name {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON; Jinja's own filter would escape `<` and `&` for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Template:
    """A compiled chat template. `now` is the time that templates which print a date will see."""

    def __init__(self, source: str, tokens: Mapping[str, str], now: datetime | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: (now or datetime.now()).strftime(pattern)
        environment.globals["namespace"] = _Namespace
        self._tokens = dict(tokens)
        self._source, self._now = source, now
        try:
            self._compiled = environment.from_string(source)
        except TemplateError as error:
            raise AfinaError(
                Problem(
                    "bad_chat_template",
                    say(N_("The model's chat template cannot be read: {reason}"), reason=str(error)),
                    say(N_("Choose the chat template ChatML or plain in the settings.")),
                    field="chat_template",
                )
            ) from None

    def render(self, messages: Messages, *, answer: bool = False, tools: Any = None) -> str:
        """The conversation as the model reads it; with `answer`, up to where the assistant begins to write.

        Raises jinja2's TemplateError where the template refuses the conversation.
        """
        try:
            return self._compiled.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=answer, **self._tokens
            )
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error

    def dates(self) -> list[str]:
        """All of the date that may be printed, so that what was written on another day is known to differ.

        The whole moment where the template does not say its patterns in so many words.
        """
        plain = re.sub(r"strftime_now\s+is\s+(not\s+)?defined", "", self._source)
        patterns = re.findall(r"""strftime_now\(\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*\)""", plain)
        moment = self._now or datetime.now()
        if len(patterns) != plain.count("strftime_now"):
            return [moment.isoformat()]
        return [moment.strftime(single or double) for single, double in patterns]


def find_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template that comes with the model in `folder`: `chat_template.jinja`, else the one in the tokenizer's config."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) and found.strip() else None
