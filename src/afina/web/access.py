"""Who may use the server: the password, the API token, the signed cookies of browsers.

A cookie says which browser it is and whether it has signed in; the page's token is derived from it, so that another
site, which can make a browser send the cookie but not read the page, cannot make it change anything. Knows nothing of
HTTP beyond these values.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from afina.core.errors import AfinaError, Problem
from afina.core.files import read_json, write_json
from afina.core.messages import N_, say
from afina.core.paths import Home

SESSION_SECONDS = 30 * 24 * 3600
SHORTEST_PASSWORD = 8


@dataclass(frozen=True)
class Session:
    """What a browser's cookie says. nonce: which browser; expires: seconds since 1970."""

    nonce: str
    signed_in: bool
    expires: int


class Access:
    """The secrets of one home folder, in `.state/access.json`, readable by its owner only.

    token: what programs send as a bearer token; it is given anew with every start and stored nowhere.
    """

    def __init__(self, home: Home, token: str | None = None) -> None:
        self._path = home.state / "access.json"
        self._lock = threading.Lock()
        self._hasher = PasswordHasher()
        self._stored: dict[str, Any] = self._load()
        self._token = _digest(token) if token else None

    @property
    def has_secret(self) -> bool:
        """Whether there is a password or a token that a stranger would have to know."""
        return bool(self._stored["password"] or self._token)

    def set_password(self, password: str) -> None:
        """Keep the password's argon2 hash. Signs out every browser. Raises AfinaError `short_password`."""
        if len(password) < SHORTEST_PASSWORD:
            raise AfinaError(
                Problem(
                    "short_password",
                    say(N_("The password is too short.")),
                    say(N_("Use at least {count} characters."), count=SHORTEST_PASSWORD),
                    field="password",
                )
            )
        if not self.password_matches(password):
            self._stored["password"] = self._hasher.hash(password)
            self._save()

    def password_matches(self, password: str) -> bool:
        """Compare with the stored hash; takes some hundredths of a second and 64 MB, one caller at a time."""
        if not self._stored["password"]:
            return False
        with self._lock:
            try:
                return self._hasher.verify(self._stored["password"], password)
            except (VerificationError, InvalidHashError):
                return False

    def token_matches(self, token: str) -> bool:
        """Whether this is the API token."""
        return self._token is not None and hmac.compare_digest(self._token, _digest(token))

    def new_session(self, signed_in: bool) -> tuple[Session, str]:
        """A session and the cookie that stands for it."""
        session = Session(secrets.token_urlsafe(18), signed_in, int(time.time()) + SESSION_SECONDS)
        body = f"{session.nonce}.{int(signed_in)}.{session.expires}"
        return session, f"{body}.{self._sign('session', body)}"

    def session(self, cookie: str | None) -> Session | None:
        """The session of a cookie, None when it is forged, outdated or no cookie at all."""
        body, dot, signature = (cookie or "").rpartition(".")
        if not dot or not hmac.compare_digest(signature.encode(), self._sign("session", body).encode()):
            return None
        nonce, signed_in, expires = body.split(".")
        if int(expires) < time.time():
            return None
        return Session(nonce, signed_in == "1", int(expires))

    def page_token(self, session: Session) -> str:
        """What a page of this session sends with everything that changes something."""
        return self._sign("page", session.nonce)

    def page_token_matches(self, session: Session, token: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.page_token(session).encode(), token.encode())

    def _sign(self, purpose: str, text: str) -> str:
        key = self._stored["secret"] + (self._stored["password"] or "")
        return hmac.new(key.encode(), f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()

    def _load(self) -> dict[str, Any]:
        try:
            stored: dict[str, Any] = read_json(self._path)
        except (FileNotFoundError, ValueError):
            stored = {}
        fresh = "secret" not in stored
        stored = {"secret": secrets.token_hex(32), "password": None} | stored
        if fresh:
            self._stored = stored
            self._save()
        return stored

    def _save(self) -> None:
        write_json(self._path, self._stored)  # mkstemp beneath makes it readable by its owner only


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
