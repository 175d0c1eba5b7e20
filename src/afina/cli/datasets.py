"""`afina datasets`: list, check, show, fix, columns, history, diff, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from afina import actions
from afina.cli.shared import HomeOption, JsonOption, Out, home_folder, looking, size
from afina.core.files import atomic
from afina.core.messages import N_, say

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, check, improve and export datasets.")


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
        int | None,
        typer.Option("--max-length", min=16, help=f"Report rows longer than this, in tokens. [{actions.LENGTH}]"),
    ] = None,
    validation: Annotated[
        str | None, typer.Option("--validation", metavar="FILE", help="Report rows that stand in this one too.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Look through a file and tell everything that is wrong with it. Exit code 2 when it cannot be trained on."""
    out = Out.of(as_json)
    with looking(out):
        report = actions.check_dataset(
            home_folder(home).create(), file, model=model, max_length=max_length, validation=validation
        )
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
            for offer in group["remedies"]:
                out.line(f"    fix {group['code']} --way {offer['way']}: {offer['consequence']}")
    if report.ok:
        out.line(say(N_("Nothing stands in the way of training.")))
    return 0 if report.ok else 2


NAME = Annotated[str, typer.Argument(metavar="NAME", help="A file in the datasets folder.")]


@app.command()
def show(
    name: NAME,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Rows to skip.")] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Rows to show.")] = 5,
    problem: Annotated[
        str | None, typer.Option("--problem", metavar="CODE", help="Only rows with this problem.")
    ] = None,
    search: Annotated[str | None, typer.Option("--search", help="Only rows that hold this text.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show rows as conversations, with what is wrong with each."""
    out = Out.of(as_json)
    found = actions.dataset_rows(home_folder(home), name, offset, limit, actions.Asked(problem, search))
    if as_json:
        out.json({**found, "rows": [_plain(out, row) for row in found["rows"]]})
        return
    for row in found["rows"]:
        out.line(f"── {row['row']}")
        _print_row(out, row)
    out.note(say(N_("Rows: {count} of {total}."), count=len(found["rows"]), total=found["total"]))


@app.command()
def fix(
    name: NAME,
    code: Annotated[str, typer.Argument(metavar="CODE", help="The problem to put right, as “check” names it.")],
    way: Annotated[
        str | None, typer.Option("--way", help="One of the ways that “check” offers; else the first.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=16, help="For too_long: the tokens a row may have.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="For too_long: count tokens as this model does.")] = None,
    validation: Annotated[
        str | None, typer.Option("--validation", metavar="NAME", help="For leak: the validation dataset.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put one kind of problem right, in a new version. The file itself stays as it is."""
    asked = actions.Fix(code, way, None, max_length, model, validation)
    out = Out.of(as_json)
    step = actions.fix_dataset(home_folder(home), name, asked).in_words(out.say)
    if as_json:
        out.json(step.model_dump())
        return
    out.line(f"{step.number}  {step.message}")
    text = N_("Removed {removed}, changed {changed}, left out {left_out}; {rows} rows now.")
    out.line(say(text, removed=step.removed, changed=step.changed, left_out=step.left_out, rows=step.rows))


@app.command()
def history(
    name: NAME,
    to: Annotated[int | None, typer.Option("--to", min=0, metavar="STEP", help="Go back (or on) to this step.")] = None,
    file: Annotated[bool, typer.Option("--from-file", help="Read the file again and start from it.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a dataset has been through, and which step training uses."""
    out, folder = Out.of(as_json), home_folder(home)
    if file:
        found = actions.start_again(folder, name)
    else:
        found = actions.dataset_history(folder, name) if to is None else actions.go_back(folder, name, to)
    found = found.in_words(out.say)
    if as_json:
        out.json(found.model_dump())
        return
    head = ["", N_("Step"), N_("What"), N_("Rows"), N_("Removed"), N_("Changed"), N_("Added"), N_("Version")]
    rows = []
    for step in found.steps:
        mark = "*" if step.current else " "
        counts = (step.rows, step.removed, step.changed, step.added)
        rows.append((mark, step.number, step.message, *counts, step.version[:12]))
    out.table(head, rows)
    if found.changed:
        out.note(say(N_("The file has changed since it was read. “--from-file” starts again from it.")))


@app.command()
def diff(
    name: NAME,
    before: Annotated[int | None, typer.Argument(metavar="STEP", help="The older step; else the one before.")] = None,
    after: Annotated[int | None, typer.Argument(metavar="STEP", help="The newer step; else the current one.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10000, help="Differences to show.")] = 20,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two steps of a dataset's history."""
    out = Out.of(as_json)
    found = actions.dataset_diff(home_folder(home), name, before, after, 0, limit)
    if as_json:
        sides = ("before", "after")
        told = [
            {"kind": item["kind"]} | {side: item[side] and _plain(out, item[side]) for side in sides}
            for item in found["changes"]
        ]
        out.json({**found, "changes": told})
        return
    for item in found["changes"]:
        for sign, row in (("-", item["before"]), ("+", item["after"])):
            if row is not None:
                out.line(f"{sign} {row['row']}")
                _print_row(out, row, f"{sign}   ")
    text = N_("Removed {removed}, changed {changed}, added {added}.")
    out.note(say(text, removed=found["removed"], changed=found["changed"], added=found["added"]))


@app.command()
def columns(
    name: NAME,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="COLUMN", help="Holds the questions.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", metavar="COLUMN", help="Holds the answers.")] = None,
    text: Annotated[str | None, typer.Option("--text", metavar="COLUMN", help="Holds texts, in place of both.")] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="COLUMN", help="Holds system prompts.")] = None,
    context: Annotated[str | None, typer.Option("--context", metavar="COLUMN", help="Belongs to the question.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or say which column of a table holds what, where the names do not say it. It is remembered for the file."""
    out, folder = Out.of(as_json), home_folder(home)
    chosen = {"prompt": prompt, "answer": answer, "text": text, "system": system, "context": context}
    given = any(chosen.values())
    found = actions.set_column_mapping(folder, name, chosen) if given else actions.column_mapping(folder, name)
    if as_json:
        out.json(None if found is None else {**vars(found), "rows": [_plain(out, row) for row in found.rows]})
        return
    if found is None:
        out.line(say(N_("The columns of this file need no explanation.")))
        return
    out.line(say(N_("Columns: {columns}"), columns=", ".join(found.columns)))
    for part, column in found.chosen.items():
        if column:
            out.line(f"  --{part} {column}")
    for row in found.rows:
        out.line(f"── {row['row']}")
        _print_row(out, row)


@app.command()
def export(
    name: NAME,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write; else to the terminal.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what training uses as JSON lines, a conversation or text a line."""
    lines = actions.export_dataset(home_folder(home), name)
    if output is None:
        for line in lines:
            sys.stdout.write(line.decode())
        return
    count = 0
    with atomic(output, "wb") as made:
        for line in lines:
            made.write(line)
            count += 1
    out = Out.of(as_json)
    if as_json:
        out.json({"rows": count, "file": str(output)})
    else:
        out.line(say(N_("{count} rows written to {file}."), count=count, file=str(output)))


def _plain(out: Out, row: dict[str, Any]) -> dict[str, Any]:
    problems = [
        {"code": fault.code, "field": fault.field, "value": fault.value, "message": out.say(fault.message)}
        for fault in row["problems"]
    ]
    return {**row, "problems": problems}


def _print_row(out: Out, row: dict[str, Any], indent: str = "") -> None:
    for turn in row.get("turns", []):
        out.line(f"{indent}{turn['role']}: {turn['content']}")
    for side in ("chosen", "rejected"):
        for turn in row.get(side, []):
            out.line(f"{indent}{side}: {turn['content']}")
    if row.get("text") is not None:
        out.line(f"{indent}{row['text']}")
    if row.get("raw") is not None:
        out.line(f"{indent}{row['raw']}")
    for fault in row["problems"]:
        out.line(f"{indent}! {out.say(fault.message)}")
