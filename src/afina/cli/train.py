"""`afina train`: every setting of `TrainSpec` is a flag; the run is followed to its end."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
from pydantic_core import PydanticUndefined

from afina.cli.shared import HomeOption, JsonOption, Out, duration, home_folder, looking, size
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, Message, say
from afina.core.paths import Home
from afina.core.spec import TrainSpec, about, choices
from afina.runs.early import Early

if TYPE_CHECKING:
    from afina.registry.records import Plan

app = typer.Typer(add_completion=False)
SHOWN = 4
"""Warnings of the datasets that are printed before a run starts."""
SERIOUS = {
    code: place
    for place, code in enumerate(("leak", "secret", "personal_data", "constant_answer", "too_long", "few_rows"))
}
"""Those that come first."""
MANY = {"dataset", "sample_prompts", "tags", "target_modules"}
PANELS = {
    "what": N_("What to train"),
    "basic": N_("Basic settings"),
    "length": N_("Data and length"),
    "optimizer": N_("Optimizer"),
    "lora": N_("LoRA"),
    "watching": N_("Watching and saving"),
    "machine": N_("Machine"),
    "text": N_("Text"),
    "notes": N_("Notes"),
}


def train(home: Path | None, as_json: bool, spec_file: Path | None, check: bool, **flags: Any) -> int:
    """Fine-tune a model on a dataset and follow the run to its end. Ctrl-C stops it and keeps what it has learned.

    Works with or without a running server. A second Ctrl-C leaves the run to end by itself.
    """
    out = Out.of(as_json)
    folder = home_folder(home).create()
    settings = _from_file(spec_file) if spec_file is not None else {}
    settings |= {name: value for name, value in flags.items() if value not in (None, [])}
    if check:
        return _check(folder, settings, out)
    with Early(folder) as early:  # before the imports that the checks need
        from afina import actions
        from afina.cli.follow import follow

        _warn(folder, settings, out)
        run = actions.start_run(folder, settings, paths=True)
        return follow(folder, run, out, early=early)


def _check(folder: Home, settings: dict[str, Any], out: Out) -> int:
    """Say what the run would take; 0 when it can be started."""
    from afina import actions
    from afina.cli.follow import describe

    out.note(say(N_("Loading the model and computing the longest rows once. Ctrl-C ends it.")))
    found = actions.check_run(folder, settings, paths=True)
    if out.as_json:
        out.json(found.as_json(out.say))
        return 0 if found.plan else 2
    if found.plan is None:
        raise AfinaError(found.problems)
    for group in found.warnings:
        out.line(group.message)
    for line in describe({"type": "preflight", **found.plan.model_dump()}, out):
        out.line(line)
    if not found.plan.measured:
        out.line(_estimate(found.plan))
    return 0


def _estimate(plan: Plan) -> Message:
    """What is expected where nothing could be measured."""
    facts = {"memory": size(plan.memory) or "–", "time": duration(plan.seconds) or "–"}
    return say(N_("A run computes now, so this is an estimate: {memory} of memory, {time} in all."), **facts)


def _warn(folder: Home, settings: dict[str, Any], out: Out) -> None:
    """What the datasets' checks found that does not stand in the way, the most important first."""
    from afina import actions

    if out.as_json:
        return
    with looking(out):
        planned = actions.plan_run(folder, settings, paths=True)
    warnings = sorted(planned.warnings, key=lambda group: SERIOUS.get(group.code, len(SERIOUS)))
    for group in warnings[:SHOWN]:
        out.note(say(N_("Warning: {problem}"), problem=group.message))
    if warnings:
        out.note(say(N_("To see all of it, and what can be done: afina datasets check FILE")))


def _from_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML (or JSON) file. Raises AfinaError `bad_spec_file`."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
    else:
        if isinstance(found, dict):
            return {str(name).replace("-", "_"): value for name, value in found.items()}
        reason = "no settings in it"
    raise AfinaError(
        Problem(
            "bad_spec_file",
            say(N_("The file {file} cannot be used: {reason}."), file=str(path), reason=reason),
            say(N_("Write one setting a line, such as: epochs: 3")),
            "spec",
            str(path),
        )
    )


def _flag(name: str, out: Out) -> inspect.Parameter:
    """The flag of one setting. Values are taken as text, so that all that is wrong with them is told at once."""
    field, words = TrainSpec.model_fields[name], about(name)
    options = choices(name)
    kind = next((item for item in (field.annotation, *get_args(field.annotation)) if item in (int, float)), str)
    metavar = "|".join(options) if options else {int: "N", float: "X"}.get(kind, "TEXT")
    default = "" if field.default in (PydanticUndefined, None, "", []) else str(field.default)
    default = ",".join(field.default) if get_origin(field.annotation) is list and default else default
    text = out.text(words.help) + (f" ({out.text(words.unit)})" if words.unit else "")
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        metavar=metavar,
        help=f"{text} \\[{default}]" if default else text,
        show_default=False,
        rich_help_panel=out.text(PANELS[words.group]),
    )
    annotation: Any = Annotated[list[str] | None, option] if name in MANY else Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_flags(out: Out) -> None:
    """Give `train` its signature: the shared options, then a flag for each setting."""
    look = typer.Option("--check", help=out.text(N_("Start nothing; measure what the run would take.")))
    spec = typer.Option("--spec", metavar="FILE", help=out.text(N_("Settings from a YAML file; flags go before it.")))
    shared = {
        "home": (HomeOption, None),
        "as_json": (JsonOption, False),
        "spec_file": (Annotated[Path | None, spec], None),
        "check": (Annotated[bool, look], False),
    }
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in shared.items()
    ]
    parameters += [_flag(name, out) for name in TrainSpec.model_fields]
    train.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    train.__annotations__ = {item.name: item.annotation for item in parameters}


_with_flags(Out.of(False))
app.command()(train)
