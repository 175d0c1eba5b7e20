"""Signing in, for servers that were started with `--listen`."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from afina.web.access import Access
from afina.web.render import page
from afina.web.security import cookie_name, session_cookie

router = APIRouter(include_in_schema=False)
PAUSE = 0.7
"""Seconds a wrong password waits for its answer, so that guessing is slow."""


@router.get("/login")
def form(request: Request, next: str = "/") -> Response:  # noqa: A002 - the name of the query field
    """The sign-in page."""
    if not request.app.state.settings.login:
        return RedirectResponse("/", 303)
    return page(request, "login.html", next=_local(next), wrong=False)


@router.post("/login")
async def sign_in(
    request: Request,
    password: Annotated[str, Form(max_length=1000)],
    token: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",  # noqa: A002
) -> Response:
    """Check the password, or an API token in its place, and give the browser its cookie."""
    access: Access = request.app.state.access
    session = access.session(request.cookies.get(cookie_name(request)))
    fresh = session is not None and access.page_token_matches(session, token)
    right = fresh and (access.token_matches(password) or await run_in_threadpool(access.password_matches, password))
    if not right:
        await asyncio.sleep(PAUSE)
        return page(request, "login.html", 403, next=_local(next), wrong=True)
    _, cookie = access.new_session(signed_in=True)
    return RedirectResponse(_local(next), 303, headers={"Set-Cookie": session_cookie(request, cookie)})


@router.post("/logout")
def sign_out(request: Request) -> Response:
    """Forget the browser's cookie."""
    _, cookie = request.app.state.access.new_session(signed_in=False)
    return RedirectResponse("/login", 303, headers={"Set-Cookie": session_cookie(request, cookie)})


def _local(address: str) -> str:
    """The address when it is one of ours, else the first page: a sign-in never leads to another site."""
    is_local = address.startswith("/") and not address.startswith(("//", "/\\")) and "\n" not in address
    return address if is_local else "/"
