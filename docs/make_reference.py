"""Write docs/reference.md from the program itself: settings, commands, events, dataset problems, error codes.

python docs/make_reference.py            writes it
python docs/make_reference.py --check    says whether it is up to date; 1 when it is not (a test runs this)
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

os.environ["AFINA_LANGUAGE"] = "en"

import typer
from pydantic_core import PydanticUndefined

from afina.cli.entry import COMMANDS
from afina.core import events
from afina.core.spec import LEARNING_RATES, TrainSpec, about, choices, limits
from afina.data.faults import REMEDIES, severity

HERE = Path(__file__).resolve().parent
TARGET = HERE / "reference.md"
SOURCE = HERE.parent / "src" / "afina"
GROUPS = {
    "what": "What to train",
    "basic": "Basic",
    "length": "Length and validation",
    "optimizer": "Optimizer",
    "lora": "LoRA",
    "watching": "Watching and saving",
    "machine": "Machine",
    "text": "Text",
    "notes": "Notes",
}
ENVIRONMENT = {
    "AFINA_HOME": "The home folder; `--home` goes before it. Default: `~/afina`.",
    "AFINA_LANGUAGE": "The language of the commands: `tet`, `pt`, `id` or `en`. Default: that of the terminal.",
    "AFINA_PASSWORD": "The password of the pages; needed with `--listen`. It is kept as an argon2 hash and survives restarts.",
    "AFINA_TOKEN": "The token programs send as `Authorization: Bearer …` to a server that other machines reach. Kept nowhere.",
    "AFINA_DATABASE_URL": "An SQLAlchemy address in place of the file `afina.db`, for example of PostgreSQL.",
    "AFINA_CACHE": "Where downloads and the converted starter model are kept between homes.",
    "AFINA_KERNELS": "`torch` computes without the engine's compiled kernels; otherwise they are used where a C compiler made them.",
    "AFINA_THREADS": "How many threads a computation may use, where no setting says so.",
}
CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def main(arguments: list[str]) -> int:
    """Write the page, or compare it with what is there."""
    text = page()
    if "--check" not in arguments:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    fresh = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text
    if not fresh:
        print("docs/reference.md is out of date: run python docs/make_reference.py", file=sys.stderr)
    return 0 if fresh else 1


def page() -> str:
    """The whole page as Markdown."""
    head = [
        "# Reference",
        "",
        "Written by `docs/make_reference.py` from the program itself; do not edit it by hand.",
        "",
        "- [Settings](#settings)",
        "- [Commands](#commands)",
        "- [Environment](#environment)",
        "- [Events](#events)",
        "- [Dataset problems](#dataset-problems)",
        "- [Error codes](#error-codes)",
        "",
    ]
    return "\n".join(
        [*head, *settings(), *commands(), *environment(), *event_types(), *dataset_problems(), *error_codes()]
    )


# ---------------------------------------------------------------- settings


def settings() -> Iterator[str]:
    """Every setting with its default, limits and meaning, by group."""
    rates = " and ".join(f"{rate:.10f}".rstrip("0") + f" for {method}" for method, rate in LEARNING_RATES.items())
    yield "## Settings"
    yield ""
    yield (
        "The same names in the page's form, the API, a `--spec` file and, with dashes, as flags of `afina train` "
        f"(`learning_rate` is `--learning-rate`). An empty learning rate means {rates}."
    )
    yield ""
    for group, title in GROUPS.items():
        names = [name for name in TrainSpec.model_fields if about(name).group == group]
        yield f"### {title}"
        yield ""
        yield "| setting | default | values | meaning |"
        yield "| --- | --- | --- | --- |"
        for name in names:
            told = about(name)
            yield f"| `{name}` | {default(name)} | {cell(values(name))} | **{told.label}.** {cell(told.help)} |"
        yield ""


def default(name: str) -> str:
    """The default of a setting as it is typed."""
    value = TrainSpec.model_fields[name].default
    if value is PydanticUndefined:
        return "required"
    if value in (None, "", []):
        return "empty"
    return f"`{', '.join(value) if isinstance(value, list) else f'{value:g}' if isinstance(value, float) else value}`"


def values(name: str) -> str:
    """What a setting may be: its choices, or its kind, limits and unit."""
    if found := choices(name):
        return ", ".join(f"`{choice}`" for choice in found)
    annotation = TrainSpec.model_fields[name].annotation
    kinds = {get_origin(kind) or kind for kind in (get_args(annotation) or (annotation,))}
    word = "number" if float in kinds else "whole number" if int in kinds else "text"
    word = "list" if get_origin(annotation) is list else word
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{signs[key]} {limit:,}" for key, limit in limits(name).items() if key in signs]
    unit = about(name).unit
    usual = about(name).usual
    parts = [word, *bounds, *([f"usually {usual[0]:g} to {usual[1]:g}"] if usual else []), *([unit] if unit else [])]
    return ", ".join(parts)


# ---------------------------------------------------------------- commands


def commands() -> Iterator[str]:
    """Every command with its arguments and flags."""
    yield "## Commands"
    yield ""
    yield "Exit codes: 0 done, 1 failed, 2 wrong input. `afina --version` prints the version."
    yield ""
    for name in COMMANDS:
        command = typer.main.get_command(import_module(f"afina.cli.{name}").app)
        subcommands = getattr(command, "commands", None)
        if subcommands:
            for part, sub in subcommands.items():
                yield from one_command(f"afina {name} {part}", sub)
        else:
            yield from one_command(f"afina {name}", command)


def one_command(name: str, command: Any) -> Iterator[str]:
    """A heading, what the command does, and a table of its parameters."""
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    shown = " ".join([name, *[metavar(item) for item in arguments]])
    flags = [item for item in command.params if item.param_type_name == "option" and "--help" not in item.opts]
    yield f"### `{shown}`"
    yield ""
    yield " ".join((command.help or "").split("\f")[0].split())
    yield ""
    all_settings = name == "afina train"
    kept = [item for item in flags if not (all_settings and item.name in TrainSpec.model_fields)]
    if arguments or kept:
        yield "| argument | meaning |"
        yield "| --- | --- |"
        for item in arguments:
            yield f"| `{metavar(item)}` | {cell(item.help or '')} |"
        for item in kept:
            names = ", ".join(f"`{opt}{'' if item.is_flag else ' ' + cell(metavar(item))}`" for opt in item.opts)
            yield f"| {names} | {meaning(item)} |"
        yield ""
    if all_settings:
        yield "Every [setting](#settings) is a flag too."
        yield ""


def metavar(item: Any) -> str:
    """What stands for a value."""
    if item.metavar:
        return str(item.metavar)
    annotation = item.type_descriptor.annotation
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal:
            return "|".join(str(option) for option in get_args(kind))
        if kind in (int, float):
            return "N" if kind is int else "X"
    return "TEXT"


def meaning(item: Any) -> str:
    """The help of a flag, with its default where it has one to show."""
    shown = item.default not in (None, False, "", [], ()) and not callable(item.default)
    return cell(item.help or "") + (f" Default: `{item.default}`." if shown else "")


# ---------------------------------------------------------------- environment


def environment() -> Iterator[str]:
    """Every environment variable the program reads; one that is read but not described here is an error."""
    found = {
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r"\bAFINA_[A-Z_]+\b", path.read_text(encoding="utf-8"))
    }
    if found != set(ENVIRONMENT):
        raise SystemExit(f"docs/make_reference.py must describe {sorted(found ^ set(ENVIRONMENT))} (or forget them)")
    yield "## Environment"
    yield ""
    yield "| variable | meaning |"
    yield "| --- | --- |"
    for name, words in ENVIRONMENT.items():
        yield f"| `{name}` | {words} |"
    yield ""


# ---------------------------------------------------------------- events


def event_types() -> Iterator[str]:
    """Every kind of event with its fields."""
    yield "## Events"
    yield ""
    yield (
        "A run's `events.jsonl` holds one JSON object a line: `seq` (from 0), `time` (seconds since 1970), `type`, and the "
        "fields below. `GET /api/v1/runs/{id}/events` and `afina train --json` give the same."
    )
    yield ""
    for kind in events.Event.__subclasses__():
        yield f"### `{kind.type}`"
        yield ""
        yield " ".join((inspect.getdoc(kind) or "").split())
        yield ""
        for item in dataclasses.fields(kind):
            yield f"- `{item.name}`: {field_type(str(item.type))}"
        yield ""


def field_type(text: str) -> str:
    """An annotation in words."""
    text = re.sub(r"Literal\[(.*)\]", r"one of \1", text).replace(" | None", ", or absent")
    words = {
        "PhaseName": "one of " + ", ".join(get_args(events.PhaseName)),
        "int": "whole number",
        "float": "number",
        "str": "text",
        "bool": "true or false",
    }
    return re.sub(r"\b(PhaseName|int|float|str|bool)\b", lambda match: words[match[1]], text)


# ---------------------------------------------------------------- dataset problems and error codes


def dataset_problems() -> Iterator[str]:
    """Every code a dataset's report can hold."""
    yield "## Dataset problems"
    yield ""
    yield "Errors block a run, warnings do not."
    yield ""
    yield "| code | kind | what to do |"
    yield "| --- | --- | --- |"
    for code, remedy in REMEDIES.items():
        yield f"| `{code}` | {severity(code)} | {cell(remedy)} |"
    yield ""


def error_codes() -> Iterator[str]:
    """Every code of an error, a failed run, a warning or an advice, with its first English sentence in the source."""
    found: dict[str, str] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = [
            (node.lineno, node.targets[0].id, text)
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and (text := sentence(node.value))
        ]
        named += [
            (node.lineno, node.target.id, text)
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and (text := sentence(node.value))
        ]
        for node in ast.walk(tree):
            for code, text in codes(node, named):
                found[code] = found.get(code) or text
    yield "## Error codes"
    yield ""
    yield "`error.code` in the API and with `--json`, `code` of the events `failed`, `warning` and `advice`."
    yield ""
    yield "| code | for example |"
    yield "| --- | --- |"
    for code in sorted(found):
        yield f"| `{code}` | {cell(found[code])} |"
    yield ""


def codes(node: ast.AST, named: list[tuple[int, str, str]]) -> Iterator[tuple[str, str]]:
    """(code, sentence) where a code literal stands first and a sentence after it: in a call, a tuple, or a dict's entry."""
    groups: list[list[ast.expr]] = []
    if isinstance(node, ast.Call) and "fault" not in call_name(node).lower():
        groups = [node.args]
    elif isinstance(node, ast.Tuple):
        groups = [node.elts]
    elif isinstance(node, ast.Dict):
        groups = [
            [key, *value.elts]
            for key, value in zip(node.keys, node.values, strict=True)
            if key and isinstance(value, ast.Tuple)
        ]
    for first, *rest in filter(None, groups):
        if isinstance(first, ast.Constant) and isinstance(first.value, str) and CODE.fullmatch(first.value):
            told = [text for item in rest if (text := sentence(item, named))]
            sure = isinstance(node, ast.Call) and call_name(node) in ("Problem", "Warn", "Failed", "Advice")
            if (told or sure) and len(first.value) > 2:
                yield first.value, told[0] if told else ""


def call_name(node: ast.Call) -> str:
    """The last part of what is called."""
    return str(getattr(node.func, "id", "") or getattr(node.func, "attr", ""))


def sentence(node: ast.AST | None, named: list[tuple[int, str, str]] | None = None) -> str | None:
    """The literal in `N_("…")` or `say(N_("…"), …)`, or in the last assignment to a name; None for anything else."""
    if isinstance(node, ast.Call) and call_name(node) in ("N_", "say") and node.args:
        first = node.args[0]
        return first.value if isinstance(first, ast.Constant) else sentence(first, named)
    if isinstance(node, ast.Name) and named:
        before = [text for line, name, text in sorted(named) if name == node.id and line <= node.lineno]
        return before[-1] if before else None
    return None


def cell(text: str) -> str:
    """Text that does not break a table."""
    return text.replace("\\[", "[").replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
