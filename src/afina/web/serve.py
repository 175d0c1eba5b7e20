"""Starting the server: the address, the checks before it, the browser after it.

Kept apart from `app` so that `afina --help` need not import a web framework.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterable
from types import FrameType

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.core.paths import Home
from afina.web.settings import DEFAULT_PORT, ServerSettings

SHORTEST_TOKEN = 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    home: Home,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    password: str | None = None,
    allowed_hosts: Iterable[str] = (),
    open_browser: bool = False,
    announce: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve `home` until interrupted. `announce` gets the address once the server answers.

    Beyond this machine (`host` not a loopback address) everyone must sign in: with `password` (or the environment's
    AFINA_PASSWORD; kept as an argon2 hash in the home folder), or, programs, with the environment's AFINA_TOKEN. Both
    are taken out of the environment, so that no child inherits them. Raises AfinaError `port_taken`, `port_forbidden`,
    `no_such_address`, `no_password`, `short_password`, `short_token`, `already_running`.
    """
    listener = _listen(host, port)
    try:
        _run(home, listener, host, password, frozenset(allowed_hosts), open_browser, announce)
    finally:
        listener.close()


def _run(
    home: Home,
    listener: socket.socket,
    host: str,
    password: str | None,
    allowed_hosts: frozenset[str],
    open_browser: bool,
    announce: Callable[[str], None],
) -> None:
    import uvicorn

    from afina.web.access import Access
    from afina.web.app import create_app

    port: int = listener.getsockname()[1]
    is_local = host in LOOPBACK
    token = _token()
    access = Access(home.create(), token)
    password = password or os.environ.pop("AFINA_PASSWORD", None)
    if password:
        access.set_password(password)
    if not is_local and not access.has_secret:
        raise AfinaError(
            Problem(
                "no_password",
                say(N_("Other machines could reach this server, so it needs a password.")),
                say(N_("Set AFINA_PASSWORD and start again, or leave out --listen to serve this machine only.")),
                field="listen",
                value=host,
            )
        )
    login = not is_local or bool(password or token)
    app = create_app(home, ServerSettings(host=host, port=port, allowed_hosts=allowed_hosts, login=login, token=token))
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else shown}:{port}"  # noqa: S104 - compared only

    class Server(uvicorn.Server):
        """uvicorn's, saying when it answers; looks through large files end as soon as it is asked to stop."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """End what nobody will wait for, then as usual."""
            app.state.stop.set()
            super().handle_exit(sig, frame)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Start, then announce."""
            await super().startup(sockets)
            if self.started:
                announce(address)
                if open_browser and _has_desktop():
                    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    config = uvicorn.Config(
        app,
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=64 * 1024,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    Server(config).run(sockets=[listener])


def _token() -> str | None:
    """The environment's API token. Raises AfinaError `short_token`."""
    token = os.environ.pop("AFINA_TOKEN", None)
    if token and len(token) < SHORTEST_TOKEN:
        raise AfinaError(
            Problem(
                "short_token",
                say(N_("The API token is too short.")),
                say(N_("Use at least {count} characters nobody can guess."), count=SHORTEST_TOKEN),
                field="AFINA_TOKEN",
            )
        )
    return token or None


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything slow so that a taken port is known at once."""
    if not 0 <= port < 65536:  # getaddrinfo would take it modulo 65536
        raise _explain(host, port, OSError(errno.EADDRNOTAVAIL, "no such port"))
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        raise _explain(host, port, error) from None
    listener.set_inheritable(False)
    return listener


def _explain(host: str, port: int, error: OSError) -> AfinaError:
    if error.errno == errno.EADDRINUSE:
        if _is_ours(host, port):
            message = say(N_("Afina is already running at {address}."), address=f"http://{host}:{port}")
            remedy = say(N_("Open that address, or start a second one with --port {port}."), port=str(port + 1))
            return AfinaError(Problem("already_running", message, remedy, "port", port), "conflict")
        message = say(N_("Port {port} is used by another program."), port=str(port))
        remedy = say(N_("Choose another one: --port {port}."), port=str(port + 1))
        return AfinaError(Problem("port_taken", message, remedy, "port", port), "conflict")
    if error.errno == errno.EACCES:
        message = say(N_("This account may not use port {port}."), port=str(port))
        remedy = say(N_("Choose a port above 1024, such as --port {port}."), port=str(DEFAULT_PORT))
        return AfinaError(Problem("port_forbidden", message, remedy, "port", port))
    message = say(N_("The server cannot listen at {host}, port {port}."), host=host, port=str(port))
    remedy = say(N_("Use an address of this machine, such as 127.0.0.1 or 0.0.0.0, and a port below 65536."))
    return AfinaError(Problem("no_such_address", message, remedy, "listen", host))


def _is_ours(host: str, port: int) -> bool:
    """Whether the program at this port is an Afina server."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/api/v1/health", timeout=1) as answer:
            return "version" in json.load(answer)
    except (urllib.error.URLError, ValueError, OSError):
        return False


def _has_desktop() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
