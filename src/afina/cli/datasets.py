"""`afina datasets`: list, check."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from afina import actions
from afina.cli.shared import HomeOption, JsonOption, Out, home_folder, size
from afina.core.messages import N_, say

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List datasets and check files.")


@app.command("list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the files in the datasets folder."""
    out, folder = Out.of(as_json), home_folder(home).create()
    actions.refresh_datasets(folder)
    datasets = actions.list_datasets(folder)
    if as_json:
        out.json([dataset.model_dump() for dataset in datasets])
        return
    if not datasets:
        out.line(say(N_("There are no datasets yet. Put files into {folder}"), folder=str(folder.datasets)))
        return
    head = [N_("Name"), N_("Format"), N_("Rows"), N_("Tokens"), N_("Errors"), N_("Warnings"), N_("Size")]
    rows = [
        (item.name, item.format, item.rows, item.tokens, item.errors, item.warnings, size(item.size))
        for item in datasets
    ]
    out.table(head, rows)


@app.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or the name of a dataset.")],
    model: Annotated[str | None, typer.Option("--model", help="Count tokens as this model does.")] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=16, help="Report rows longer than this, in tokens.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Look through a file and tell everything that is wrong with it. Exit code 2 when it cannot be trained on."""
    out = Out.of(as_json)
    report = actions.check_dataset(home_folder(home).create(), file, model=model, max_length=max_length)
    plain: dict[str, Any] = report.as_json(out.say)
    if as_json:
        out.json(plain)
        return 0 if report.ok else 2
    if report.estimated:
        text = N_("Format {format}, {rows} rows, about {tokens} tokens (counted in a part of the rows).")
        out.line(say(text, format=report.format, rows=report.rows, tokens=report.tokens))
    elif report.tokens is None:
        out.line(say(N_("Format {format}, {rows} rows."), format=report.format, rows=report.rows))
    else:
        text = N_("Format {format}, {rows} rows, {tokens} tokens.")
        out.line(say(text, format=report.format, rows=report.rows, tokens=report.tokens))
    for title, groups in (
        (N_("Errors"), plain["errors"]),
        (N_("Warnings"), plain["warnings"]),
        (N_("Notes"), plain["notes"]),
    ):
        if groups:
            out.line(f"\n{out.text(title)}")
        for group in groups:
            out.line(f"  {group['code']}  {group['message']}")
            out.line(f"    {group['remedy']}")
    if report.ok:
        out.line(say(N_("Nothing stands in the way of training.")))
    return 0 if report.ok else 2
