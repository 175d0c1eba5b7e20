"""Every failure as the one JSON shape, in the reader's language; as a page where a page was asked for.

`{"error": {"code", "kind", "message", "problems": [{"code", "field", "value", "message", "remedy"}]}}`
"""

from __future__ import annotations

import http
import json
import math
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from afina.core.errors import AfinaError, Kind, Problem
from afina.core.messages import N_, Message, say
from afina.web.language import speaker

STATUS: dict[Kind, int] = {
    "wrong_input": 422, "not_found": 404, "conflict": 409, "forbidden": 403, "unavailable": 503, "failed": 500,
}  # fmt: skip
MACHINE_PATHS = ("/api/", "/v1/", "/static/")


class ProblemRecord(BaseModel):
    """One thing that is wrong: a stable code, the field and value it concerns, a sentence, the next step."""

    code: str
    field: str | None
    value: str | int | float | bool | None
    message: str
    remedy: str | None


class ErrorBody(BaseModel):
    """All problems of a request; `code` and `message` are those of the first."""

    code: str
    kind: str
    message: str
    problems: list[ProblemRecord]


class ErrorRecord(BaseModel):
    """The one shape of every error."""

    error: ErrorBody


def wants_page(connection: HTTPConnection) -> bool:
    """Whether a person's browser asked for a page (rather than a program for data)."""
    path = connection.scope["path"]
    return not path.startswith(MACHINE_PATHS) and "text/html" in connection.headers.get("accept", "")


def respond(connection: HTTPConnection, error: AfinaError, status: int | None = None, **headers: str) -> Response:
    """The answer for a failure."""
    status = status or STATUS[error.kind]
    write = speaker(connection)
    body = error.as_json(write.write)
    if wants_page(connection):
        from afina.web.render import page

        return page(Request(connection.scope), "error.html", status, headers=headers, **body)
    kept = {"Content-Language": write.lang, "Vary": "Cookie, Accept-Language", **headers}
    return Response(json.dumps(finite(body)), status, headers=kept, media_type="application/json")


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity, but what someone sent may have held one."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


_HTTP: dict[int, tuple[Kind, str, Message, Message]] = {
    400: ("wrong_input", "bad_request", say(N_("The request could not be read.")), say(N_("Send well-formed data."))),
    401: ("forbidden", "sign_in", say(N_("Sign in first.")), say(N_("Use the sign-in page, or send an API token."))),
    403: ("forbidden", "forbidden", say(N_("This is not allowed.")), say(N_("Reload the page and try again."))),
    404: ("not_found", "not_found", say(N_("There is nothing at this address.")), say(N_("Check the address."))),
    405: ("wrong_input", "method_not_allowed", say(N_("This address does not take this kind of request.")), say(N_("The API's page lists what each address takes."))),
    413: ("wrong_input", "too_large", say(N_("This is more than the server accepts.")), say(N_("Send less, or start the server with a higher limit."))),
    415: ("wrong_input", "wrong_media_type", say(N_("The server cannot read this kind of content.")), say(N_("Send JSON, and say so in Content-Type."))),
}  # fmt: skip
_INTERNAL = AfinaError(
    Problem(
        "internal",
        say(N_("The server made a mistake with this request.")),
        say(N_("Try again. If it happens again, the server's console says more.")),
    ),
    "failed",
)


def http_error(status: int) -> AfinaError:
    """What an HTTP status means, in our words."""
    kind, code, message, remedy = _HTTP.get(status) or _HTTP[400 if status < 500 else 404]
    if status not in _HTTP:
        code = http.HTTPStatus(status).name.lower()
    return AfinaError(Problem(code, message, remedy), kind)


_KINDS: dict[str, Message] = {
    "missing": say(N_("“{field}” is missing.")),
    "extra_forbidden": say(N_("There is no field “{field}”.")),
    "json_invalid": say(N_("This is not JSON.")),
}


def _problem(item: Any) -> Problem:
    where = [str(part) for part in item["loc"][1:]] or [str(item["loc"][0])]
    field = ".".join(where)
    value = item.get("input")
    known = _KINDS.get(item["type"])
    if item["type"] == "json_invalid":
        return Problem("bad_json", say(N_("This is not JSON.")), say(N_("Send well-formed JSON.")), "body")
    if known is not None:
        code = "missing_field" if item["type"] == "missing" else "unknown_field"
        return Problem(
            code, Message(known.template, {"field": field}), say(N_("The API's page lists the fields.")), field
        )
    shown = value if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return Problem(
        "wrong_value",
        say(N_("“{field}” cannot be “{value}”."), field=field, value=_short(shown)),
        say(N_("Change “{field}” and try again."), field=field),
        field,
        shown if not isinstance(shown, str) else _short(shown),
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def install(app: FastAPI) -> None:
    """Teach the application the one shape."""

    @app.exception_handler(AfinaError)
    async def _explained(request: Request, error: AfinaError) -> Response:
        return respond(request, error)

    @app.exception_handler(HTTPException)
    async def _by_status(request: Request, error: HTTPException) -> Response:
        return respond(request, http_error(error.status_code), error.status_code, **(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return respond(request, AfinaError([_problem(item) for item in error.errors()]))

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> Response:
        return respond(request, _INTERNAL)
