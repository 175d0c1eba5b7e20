"""`afina models`: list, add, remove."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated

import typer

from afina import actions
from afina.cli.runs import confirm
from afina.cli.shared import HomeOption, JsonOption, Out, home_folder, size
from afina.core.messages import N_, Message, say
from afina.registry.records import ModelInfo

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, add and remove models.")
KIND = {"base": N_("base model"), "lora": N_("LoRA"), "full": N_("full")}
STATUS = {"ready": N_("ready"), "adding": N_("being added"), "broken": N_("broken")}


@app.command("list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List base models and fine-tuned ones."""
    out = Out.of(as_json)
    models = [model.in_words(out.say) for model in actions.list_models(home_folder(home).create())]
    if as_json:
        out.json([model.model_dump() for model in models])
        return
    if not models:
        out.line(say(N_("There are no models yet. Add one with: afina models add starter")))
        return
    head = [N_("Id"), N_("Name"), N_("Kind"), N_("Parameters"), N_("Size"), N_("From"), N_("Status")]
    out.table(head, [_row(model, out) for model in models])


def _row(model: ModelInfo, out: Out) -> list[str | None]:
    count = f"{model.parameters / 1e6:.0f} M" if model.parameters else None
    name = f"{model.name} ({', '.join(model.aliases)})" if model.aliases else model.name
    status = out.text(STATUS[model.status]) + (f": {model.problem.message}" if model.problem else "")
    return [model.id, name, out.text(KIND[model.kind]), count, size(model.size), model.parent or model.source, status]


@app.command()
def add(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="starter, a model's folder, a GGUF file, or hub:owner/name[@revision]."),
    ],
    name: Annotated[str | None, typer.Option("--name", help="The name it gets.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a base model: the starter model, a local folder, a GGUF file, or a model of the hub."""
    out = Out.of(as_json)
    with _progress(out) as on_progress:
        model = actions.add_model(home_folder(home).create(), source, name, on_progress)
    if as_json:
        out.json(model.model_dump())
    else:
        out.line(say(N_("The model “{model}” is ready."), model=model.name))


def _progress(out: Out) -> AbstractContextManager[Callable[[float, Message], None]]:
    return _bar(out) if out.is_terminal else _lines(out)


@contextmanager
def _lines(out: Out) -> Iterator[Callable[[float, Message], None]]:
    """A line for each new stage; JSON lines with `--json`."""
    last = ""

    def show(share: float, message: Message) -> None:
        nonlocal last
        words = out.say(message)
        if out.as_json:
            out.json({"progress": share, "message": words})
        elif words != last:
            out.line(words)
        last = words

    yield show


@contextmanager
def _bar(out: Out) -> Iterator[Callable[[float, Message], None]]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda share, message: progress.update(task, completed=share, description=out.say(message))


@app.command()
def remove(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name, or the run of a fine-tuned one.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a model's files."""
    out, folder = Out.of(as_json), home_folder(home).create()
    info = actions.get_model(folder, model)
    confirm(out, yes, out.say(say(N_("Delete the model “{model}” and its files?"), model=info.name)))
    actions.delete_model(folder, info.id)
    if as_json:
        out.json({"deleted": info.id})
    else:
        out.line(say(N_("Deleted.")))
