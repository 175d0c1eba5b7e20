"""`afina serve`: the pages and the API."""

from __future__ import annotations

from typing import Annotated

import typer

from afina.cli.shared import HomeOption, JsonOption, Out, home_folder
from afina.core.messages import N_, say
from afina.web.settings import DEFAULT_PORT

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    home: HomeOption = None,
    port: Annotated[int, typer.Option("--port", help="The port to listen on.")] = DEFAULT_PORT,
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="ADDRESS", help="The address; others than this machine need AFINA_PASSWORD."),
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", metavar="NAME", help="A name by which others reach this machine; may be repeated."
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start the pages and the API. Ctrl-C ends the server; runs go on."""
    from afina.web.serve import serve as run_server

    out = Out.of(as_json)

    def announce(address: str) -> None:
        if as_json:
            out.json({"address": address})
        else:
            out.line(say(N_("Afina is at {address}   (Ctrl-C ends the server; runs go on)"), address=address))

    run_server(
        home_folder(home).create(),
        listen,
        port,
        allowed_hosts=allow_host or (),
        open_browser=open_browser,
        announce=announce,
    )
