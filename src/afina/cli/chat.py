"""`afina chat`: talk with a model, or ask it one thing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from afina import actions
from afina.chat.pool import ChatPool, Loadable
from afina.chat.process import failure
from afina.chat.protocol import Precision, Question
from afina.cli.shared import HomeOption, JsonOption, Out, home_folder
from afina.core.messages import N_, say

app = typer.Typer(add_completion=False)


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model, or the run that made it: name, id or folder.")
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", help="Ask this one thing and end.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system prompt.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 always takes the likeliest word. [0 with --prompt, else 0.7]")
    ] = None,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Choose among the likeliest words of this share.")] = 0.9,
    max_tokens: Annotated[int, typer.Option(min=1, max=32768, help="The longest answer, in tokens.")] = 512,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answer.")] = None,
    precision: Annotated[
        Precision, typer.Option(help="Number format of the weights; auto takes the fastest that answers as well.")
    ] = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk with a model. Without --prompt: a conversation, ended by an empty line or Ctrl-D."""
    out = Out.of(as_json)
    ref = actions.resolve_model(home_folder(home).create(), model, paths=True)
    loadable = Loadable(ref.folder, ref.adapters, ref.chat_template, precision)
    warmth = temperature if temperature is not None else (0.0 if prompt is not None else 0.7)
    pool = ChatPool(most=1)
    said = [{"role": "system", "content": system}] if system else []
    try:
        for asked in [prompt] if prompt is not None else _asked(out):
            said.append({"role": "user", "content": asked})
            question = Question(said, max_tokens, warmth, top_p, seed)
            answer, end = _answer(pool, loadable, question, out)
            said.append({"role": "assistant", "content": answer})
            if as_json:
                out.json({"model": ref.id, "prompt": asked, "answer": answer, **end})
    finally:
        pool.close()


def _asked(out: Out) -> Iterator[str]:
    """What the person types, line by line, until an empty line or the end."""
    if sys.stdin.isatty():
        out.note(say(N_("Write and press Enter; an empty line ends the conversation.")))
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _answer(pool: ChatPool, model: Loadable, question: Question, out: Out) -> tuple[str, dict[str, Any]]:
    """Print the answer as it comes; returns it with what the end of it says. Ctrl-C ends the answer."""
    text = ""
    end: dict[str, Any] = {}
    pieces = pool.answer(model, question)
    try:
        for piece in pieces:
            error = failure(piece)
            if error is not None:
                raise error
            if piece.get("text"):
                text += piece["text"]
                if not out.as_json:
                    sys.stdout.write(piece["text"])
                    sys.stdout.flush()
            if "done" in piece:
                end = {key: value for key, value in piece.items() if key != "done"}
    finally:
        getattr(pieces, "close", lambda: None)()
    if not out.as_json:
        out.line()
    return text, end
