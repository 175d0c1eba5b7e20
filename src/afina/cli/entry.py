"""From the arguments to a command, and from whatever happens to an exit code: 0 done, 1 failed, 2 wrong input.

The one boundary of the command line: every error ends here as a sentence (or as JSON with `--json`), never a traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import Any

import typer
from typer import _click as click
from typer.core import TyperGroup

from afina import __version__
from afina.cli.shared import HomeOption, Out, home_folder
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say

COMMANDS: dict[str, str] = {
    "serve": N_("Start the pages and the API."),
    "train": N_("Fine-tune a model on a dataset."),
    "runs": N_("List, show, stop, resume and delete runs."),
    "models": N_("List, add and remove models."),
    "datasets": N_("List, check, improve and export datasets."),
    "chat": N_("Talk with a model."),
    "doctor": N_("Show what this machine can do."),
}
WRONG_INPUT = {"wrong_input", "not_found"}


class LazyGroup(TyperGroup):
    """Knows its commands by name and one line of help; imports a command's module when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The real command in the place of the line in the help."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = typer.main.get_command(import_module(f"afina.cli.{name}").app)
            command.name = name
        return name, command, rest


def build(out: Out) -> Any:
    """The root command with a line for each of the others."""
    root = typer.Typer(
        cls=LazyGroup,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,  # rich takes 0.2 s to import, for one page of plain lines
        help=out.text(N_("Fine-tune open language models on the machine you have.")),
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            out.line(f"afina {__version__}")
            raise typer.Exit

    words = out.text(N_("Show the version and end."))

    @root.callback()
    def start(
        home: HomeOption = None,
        version: bool = typer.Option(False, "--version", is_eager=True, callback=show_version, help=words),
    ) -> None:
        """Remember the home that stands before the command."""
        if home is not None:
            os.environ["AFINA_HOME"] = str(home)

    for name, line in COMMANDS.items():
        root.command(name, help=out.text(line))(_never_called)
    return typer.main.get_command(root)


def _never_called() -> None:
    """Stands for a command in the help until it is loaded."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    out = Out.for_arguments(arguments)
    try:
        return _run(arguments, out)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        out.note(say(N_("Interrupted.")))
        return 1
    except OSError as error:
        out.error(_from_system(error))
        return 1
    except Exception:  # noqa: BLE001 - the one boundary: nothing ever ends in a traceback on the terminal
        out.error(_unexpected())
        return 1


def _run(arguments: list[str], out: Out) -> int:
    try:
        result = build(out)(arguments, prog_name="afina", standalone_mode=False)
    except AfinaError as error:
        out.error(error)
        return 2 if error.kind in WRONG_INPUT else 1
    except click.exceptions.NoArgsIsHelpError as help_:
        out.line(help_.format_message())
        return 0
    except click.exceptions.UsageError as error:
        hint = say(N_("“{command} --help” shows what there is."), command=_command(error))
        out.error(AfinaError(Problem("usage", say("{text}.", text=error.format_message().rstrip(".")), hint)))
        return 2
    except typer.Abort:
        return 1
    return result if isinstance(result, int) else 0


def _command(error: Any) -> str:
    return str(error.ctx.command_path) if error.ctx is not None else "afina"


def _from_system(error: OSError) -> AfinaError:
    where = f"{error.filename}: " if error.filename else ""
    return AfinaError(
        Problem(
            "system",
            say(N_("The system refused: {reason}."), reason=f"{where}{error.strerror or error}"),
            say(N_("Look at the disk's free space and the permissions of the home folder.")),
        ),
        kind="failed",
    )


def _unexpected() -> AfinaError:
    """An error nobody foresaw: the traceback goes into a file, the sentence to the person."""
    error = sys.exception()
    file = home_folder(None).state / "last-error.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        file = file.with_name("?")
    return AfinaError(
        Problem(
            "unexpected",
            say(N_("Something went wrong that should not: {reason}."), reason=f"{type(error).__name__}: {error}"[:300]),
            say(N_("The details are in {file}; please report them."), file=str(file)),
        ),
        kind="failed",
    )
