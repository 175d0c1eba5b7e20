"""What the server was started with. Knows nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field

DEFAULT_PORT = 8642
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class ServerSettings:
    """host, port: where the server listens; allowed_hosts: names it answers to beyond this machine's own and plain
    addresses; login: whether a password or token is asked for; token: what programs may send in its place; upload_limit and body_limit: bytes of an uploaded file
    and of any other request; supervise: whether this server starts and adopts runs; chat_models: models kept in memory at
    once; chat_idle_seconds: unloaded after that.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    allowed_hosts: frozenset[str] = field(default_factory=frozenset)
    login: bool = False
    token: str | None = field(default=None, repr=False)
    upload_limit: int = 4_000 * MEGABYTE
    body_limit: int = 2 * MEGABYTE
    supervise: bool = True
    chat_models: int = 2
    chat_idle_seconds: float = 600.0
