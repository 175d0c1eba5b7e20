"""The guard in front of everything: which hosts we answer to, who may change something, how much they may send.

- Host: only this machine's names and plain IP addresses, so that a foreign name that points here (DNS rebinding) is
  refused.
- Unsafe methods: never from another site (`Sec-Fetch-Site`, `Origin`); a browser also sends its page's token.
- Sockets: only from our own pages, or from programs that have no origin.
- With `--listen`: nothing without signing in or a bearer token, but the sign-in page and the pages' own files.
- Headers: a content security policy that lets nothing in from elsewhere.

Knows nothing of what the requests are about.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.web.access import SESSION_SECONDS, Access, Session
from afina.web.errors import http_error, respond, wants_page
from afina.web.settings import ServerSettings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = ("/static/", "/login", "/language/", "/api/v1/health")
UPLOADS = "/api/v1/datasets"
POLICY = (
    "default-src 'self'; img-src 'self' data:; connect-src 'self' {sockets}; base-uri 'none'; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware, the outermost one: its headers stand on every answer, also on errors."""

    def __init__(self, app: ASGIApp, access: Access, settings: ServerSettings) -> None:
        self.app = app
        self.access = access
        self.settings = settings
        own = {"localhost", socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        self.hosts = own | {name.lower() for name in settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on to the application."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        session = self.access.session(connection.cookies.get(cookie_name(connection)))
        new_cookie: str | None = None
        if session is None and scope["type"] == "http" and wants_page(connection):
            session, new_cookie = self.access.new_session(signed_in=False)
        if session is not None:
            scope["afina.token"] = self.access.page_token(session)
            scope["afina.signed_in"] = session.signed_in
        refusal = self._refusal(connection, session)
        if scope["type"] == "websocket":
            await self._socket(refusal is None, scope, receive, send)
            return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._dress(connection, MutableHeaders(raw=message["headers"]), new_cookie)
            await send(message)

        if refusal is not None:
            await refusal(scope, receive, dressed)
        else:
            await self.app(scope, self._limited(connection, receive), dressed)

    def _refusal(self, connection: HTTPConnection, session: Session | None) -> Response | None:
        """The answer to someone who may not do this; None to everyone else."""
        host = connection.headers.get("host", "")
        if not self._own_host(host):
            return respond(connection, _bad_host(host))
        path, method = connection.scope["path"], connection.scope.get("method", "GET")
        is_socket = connection.scope["type"] == "websocket"
        bearer = self._bearer(connection)
        if (is_socket or method not in SAFE_METHODS) and not bearer:
            if _foreign(connection, host):
                return respond(connection, _FOREIGN)
            if not is_socket and _by_browser(connection, session) and not self._has_page_token(connection, session):
                return respond(connection, _NO_TOKEN)
        signed_in = bearer or (session is not None and session.signed_in)
        if self.settings.login and not signed_in and not path.startswith(OPEN_PATHS):
            if wants_page(connection):
                return RedirectResponse(f"/login?next={quote(path)}", 303)
            return respond(connection, http_error(401), 401, **{"WWW-Authenticate": "Bearer"})
        length = connection.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._limit(connection):
            return respond(connection, http_error(413), 413, Connection="close")
        return None

    def _own_host(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname if _parses(host) else None
        if name is None:
            return False
        return name in self.hosts or _is_address(name)

    def _bearer(self, connection: HTTPConnection) -> bool:
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and bool(token) and self.access.token_matches(token.strip())

    def _has_page_token(self, connection: HTTPConnection, session: Session | None) -> bool:
        if connection.scope["path"] == "/login":  # its form carries the token as a field and checks it itself
            return True
        token = connection.headers.get("x-afina-token", "")
        return session is not None and self.access.page_token_matches(session, token)

    def _limit(self, connection: HTTPConnection) -> int:
        is_upload = connection.scope["path"] == UPLOADS
        return self.settings.upload_limit if is_upload else self.settings.body_limit

    def _limited(self, connection: HTTPConnection, receive: Receive) -> Receive:
        """`receive` that counts, for senders who do not say how much comes or say less than they send."""
        left = self._limit(connection)

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413)
            return message

        return counted

    async def _socket(self, allowed: bool, scope: Scope, receive: Receive, send: Send) -> None:
        if allowed:
            await self.app(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.close", "code": 1008})

    def _dress(self, connection: HTTPConnection, headers: MutableHeaders, new_cookie: str | None) -> None:
        host = connection.headers.get("host", "")
        sockets = f"ws://{host} wss://{host}" if self._own_host(host) else ""
        headers.setdefault("Content-Security-Policy", POLICY.format(sockets=sockets).replace("  ", " "))
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        if new_cookie is not None and "set-cookie" not in headers:
            headers.append("Set-Cookie", session_cookie(connection, new_cookie))


def cookie_name(connection: HTTPConnection) -> str:
    """Cookies ignore ports, so the port is in the name: two servers on one machine do not sign each other out."""
    host = connection.headers.get("host", "")
    port = (urlsplit(f"//{host}").port if _parses(host) else None) or (443 if connection.url.scheme == "https" else 80)
    return f"afina_session_{port}"


def session_cookie(connection: HTTPConnection, value: str) -> str:
    """The Set-Cookie header of a session; out of reach of scripts and of other sites."""
    secure = "; Secure" if connection.url.scheme == "https" else ""
    return f"{cookie_name(connection)}={value}; Path=/; Max-Age={SESSION_SECONDS}; HttpOnly; SameSite=Strict{secure}"


def _parses(host: str) -> bool:
    if not host or any(character in host for character in "/\\@?# \t"):
        return False
    try:
        _ = urlsplit(f"//{host}").port
    except ValueError:
        return False
    return True


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _foreign(connection: HTTPConnection, host: str) -> bool:
    """Whether another site's page is behind this request."""
    if connection.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return True
    origin = connection.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != host.lower()


def _by_browser(connection: HTTPConnection, session: Session | None) -> bool:
    headers = connection.headers
    return session is not None or "origin" in headers or "sec-fetch-site" in headers


def _bad_host(host: str) -> AfinaError:
    return AfinaError(
        Problem(
            "host_not_allowed",
            say(N_("The server does not answer to the name “{host}”."), host=host[:100]),
            say(N_("Use the address it printed when it started, or start it with --allow-host.")),
            field="Host",
            value=host[:100],
        ),
        "forbidden",
    )


_FOREIGN = AfinaError(
    Problem(
        "foreign_origin",
        say(N_("This request came from a page of another site, so it was refused.")),
        say(N_("Use Afina's own pages, or a program with an API token.")),
        field="Origin",
    ),
    "forbidden",
)
_NO_TOKEN = AfinaError(
    Problem(
        "page_token",
        say(N_("The page that sent this is out of date, so nothing was changed.")),
        say(N_("Reload the page and try again.")),
        field="X-Afina-Token",
    ),
    "forbidden",
)
