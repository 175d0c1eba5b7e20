"""`afina runs`: list, show, stop, resume, delete."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Annotated, Literal

import typer

from afina import actions
from afina.cli.follow import follow
from afina.cli.shared import HomeOption, JsonOption, Out, duration, home_folder, number
from afina.core.errors import AfinaError, Problem
from afina.core.events import ENDED
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.registry.records import RunInfo
from afina.runs.supervisor import Supervisor

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, show, stop, resume and delete runs.")
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, name, or the beginning of its id.")]
STATUS = {
    "queued": N_("waiting"),
    "starting": N_("starting"),
    "running": N_("running"),
    "stopping": N_("stopping"),
    "succeeded": N_("succeeded"),
    "stopped": N_("stopped"),
    "failed": N_("failed"),
}


@app.command("list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List all runs, newest first."""
    out, folder = Out.of(as_json), home_folder(home)
    Supervisor(folder.create()).settle()
    runs = actions.list_runs(folder)
    if as_json:
        out.json([run.in_words(out.say).model_dump() for run in runs])
        return
    if not runs:
        out.line(say(N_("There are no runs yet. Start one with: afina train --model starter --dataset FILE")))
        return
    head = [
        N_("Id"),
        N_("Name"),
        N_("Status"),
        N_("Model"),
        N_("Method"),
        N_("Step"),
        N_("Loss"),
        N_("Validation"),
        N_("Time"),
    ]
    out.table(head, [_row(run, out) for run in runs])


def _row(run: RunInfo, out: Out) -> list[str | None]:
    step = f"{run.step}/{run.total_steps}" if run.total_steps else None
    status = out.text(STATUS[run.status])
    losses = [number(run.train_loss), number(run.validation_loss)]
    return [run.id, run.name, status, run.model, run.method, step, *losses, duration(run.seconds)]


@app.command()
def show(run: RunArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show one run whole: where it stands and every setting."""
    out, folder = Out.of(as_json), home_folder(home)
    Supervisor(folder.create()).settle()
    info = actions.get_run(folder, run).in_words(out.say)
    if as_json:
        out.json(info.model_dump())
        return
    facts: list[tuple[str, str | None]] = [
        (N_("Name"), info.name),
        (N_("Status"), out.text(STATUS[info.status])),
        (N_("Begun"), datetime.fromtimestamp(info.created).strftime("%Y-%m-%d %H:%M")),
        (N_("Model"), info.model),
        (N_("Datasets"), ", ".join(part.name for part in info.dataset)),
        (N_("Step"), f"{info.step}/{info.total_steps}" if info.total_steps else None),
        (N_("Training loss"), number(info.train_loss)),
        (N_("Validation loss"), number(info.validation_loss)),
        (N_("Time"), duration(info.seconds)),
        (N_("Result"), info.output),
    ]
    if info.error is not None:
        facts.append((N_("Cause"), f"{info.error.message} {info.error.remedy or ''}".strip()))
    out.table(["", ""], [(out.text(name), value) for name, value in facts if value is not None])
    out.table(
        [N_("Setting"), N_("Value")],
        [(name, value) for name, value in info.spec.items() if value not in (None, "", [])],
    )


@app.command()
def stop(
    run: RunArgument,
    keep: Annotated[
        Literal["last", "best"], typer.Option("--keep", help="Which weights become the result: the last or the best.")
    ] = "last",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Stop a run and wait until it has ended. Ctrl-C leaves it to end by itself."""
    out, folder = Out.of(as_json), home_folder(home)
    supervisor = Supervisor(folder.create())
    info = actions.stop_run(folder, run, keep)
    if info.status not in ENDED:
        out.note(say(N_("Stopping “{run}”…"), run=info.name))
    while info.status not in ENDED or not supervisor.settled(info.id):
        time.sleep(0.2)
        info = actions.get_run(folder, info.id)
    if as_json:
        out.json(info.in_words(out.say).model_dump())
    elif info.output:
        out.line(say(N_("Stopped. The result is in {path}"), path=info.output))
    else:
        out.line(say(N_("Stopped. There is no result.")))
    return 0


@app.command()
def resume(run: RunArgument, home: HomeOption = None, as_json: JsonOption = False) -> int:
    """Go on with a stopped or failed run from its last checkpoint, and follow it to its end."""
    out, folder = Out.of(as_json), home_folder(home)
    Supervisor(folder.create()).settle()
    info = actions.get_run(folder, run)
    end = _end_of_events(folder, info.id)
    return follow(folder, actions.resume_run(folder, info.id), out, end)


def _end_of_events(home: Home, run_id: str) -> int:
    """Where the log ends now: what a resumed run says comes after it."""
    end = 0
    while (after := actions.run_events(home, run_id, end)[1]) != end:
        end = after
    return end


@app.command()
def delete(
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a run and everything it made."""
    out, folder = Out.of(as_json), home_folder(home)
    Supervisor(folder.create()).settle()
    info = actions.get_run(folder, run)
    confirm(out, yes, out.say(say(N_("Delete the run “{run}” and its result?"), run=info.name)))
    actions.delete_run(folder, info.id)
    if as_json:
        out.json({"deleted": info.id})
    else:
        out.line(say(N_("Deleted.")))


def confirm(out: Out, yes: bool, question: str) -> None:
    """Ask before something is deleted. Raises AfinaError where nobody can be asked, Abort when the answer is no."""
    if yes:
        return
    if not (sys.stdin.isatty() and out.is_terminal):
        raise AfinaError(
            Problem(
                "not_confirmed",
                say(N_("Nobody can be asked here.")),
                say(N_("Add --yes to delete without a question.")),
            )
        )
    if not typer.confirm(question):
        raise typer.Abort
