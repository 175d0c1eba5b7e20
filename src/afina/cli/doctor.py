"""`afina doctor`: what this machine can do."""

from __future__ import annotations

import typer

from afina import actions
from afina.cli.shared import HomeOption, JsonOption, Out, home_folder, size
from afina.core.messages import N_, say

app = typer.Typer(add_completion=False)


@app.command()
def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show what this machine can do: cores, memory, accelerator, disk, versions."""
    out = Out.of(as_json)
    facts = actions.doctor(home_folder(home))
    problems = facts.pop("problems")
    if as_json:
        out.json({**facts, "problems": [problem.as_json(out.say) for problem in problems]})
        return
    cards = ", ".join(f"{card['name']} ({size(card['memory'])})" for card in facts["accelerators"])
    memory, disk = facts["memory"], facts["disk"]
    out.table(
        ["", ""],
        [
            (out.text(N_("System")), facts["system"]),
            (out.text(N_("Processor")), facts["processor"]),
            (out.text(N_("Cores")), f"{facts['cores']} ({facts['threads']})"),
            (out.text(N_("Memory")), _of(out, memory["available"], memory["total"])),
            (out.text(N_("Accelerator")), cards or out.text(N_("none"))),
            (out.text(N_("Disk")), _of(out, disk["free"], disk["total"])),
            (out.text(N_("Home folder")), facts["home"]),
            *sorted(facts["versions"].items()),
        ],
    )
    for problem in problems:
        out.line(f"{out.say(problem.message)} {out.say(problem.remedy)}")


def _of(out: Out, free: int, total: int) -> str:
    return out.say(say(N_("{free} free of {total}"), free=size(free), total=size(total)))
