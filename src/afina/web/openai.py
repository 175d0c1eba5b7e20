"""OpenAI's shape, `/v1`: so that programs written for it can talk to the models here.

Fields of that API that mean nothing here are passed over, as its other servers do; those that would change the answer
are honoured or refused.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from afina import actions
from afina.chat.protocol import Question
from afina.web.errors import ErrorRecord, respond
from afina.web.language import speaker
from afina.web.talk import Answer, Spoken, ask, problem

router = APIRouter(
    prefix="/v1",
    tags=["openai"],
    responses={status: {"model": ErrorRecord} for status in (401, 403, 404, 409, 413, 422)},
)


class Part(BaseModel):
    """A piece of a message; only text can be read here."""

    type: Literal["text"]
    text: str = Field(max_length=1_000_000)


class Said(BaseModel):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, Field(max_length=1_000_000)] | list[Part]

    def as_json(self) -> dict[str, str]:
        """As our own chat takes it; "developer" is the newer word for "system"."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(BaseModel):
    """What a stream ends with."""

    include_usage: bool = False


class Completion(BaseModel):
    """A request for an answer."""

    model: str = Field(min_length=1, max_length=1000)
    messages: list[Said] = Field(min_length=1, max_length=10_000)
    temperature: float = Field(default=1.0, ge=0, le=5)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int | None = Field(default=None, ge=0, le=2**32 - 1)
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None


@router.get("/models")
def models(request: Request) -> dict[str, Any]:
    """The models that can answer."""
    ready = [model for model in actions.list_models(request.app.state.home) if model.status == "ready"]
    data = [{"id": model.id, "object": "model", "created": int(model.created), "owned_by": "afina"} for model in ready]
    return {"object": "list", "data": data}


@router.post("/chat/completions", response_class=Response)
async def complete(request: Request, body: Completion) -> Response:
    """Answer a conversation, at once or as server-sent events."""
    question = Question(
        [message.as_json() for message in body.messages],
        body.max_completion_tokens or body.max_tokens or 1024,
        body.temperature,
        body.top_p,
        body.seed,
    )
    answer = await ask(request, body.model, question)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
    pieces = _until(answer, [body.stop] if isinstance(body.stop, str) else body.stop or [])
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return Spoken(answer, _events(request, head, pieces, usage), "text/event-stream")
    text: list[str] = []
    async for piece in pieces:
        if error := problem(piece):
            return respond(request, error)
        text.append(piece.get("text", ""))
    message = {"role": "assistant", "content": "".join(text)}
    choice = {"index": 0, "message": message, "finish_reason": _reason(piece), "logprobs": None}
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": _usage(piece)})


async def _events(
    request: Request, head: dict[str, Any], pieces: AsyncIterator[dict[str, Any]], usage: bool
) -> AsyncIterator[bytes]:
    def event(delta: dict[str, str], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return _event({**head, "object": "chat.completion.chunk", "choices": [choice], **more})

    yield event({"role": "assistant", "content": ""})
    async for piece in pieces:
        if error := problem(piece):
            yield _event(error.as_json(speaker(request).write))
            return
        if "text" in piece:
            yield event({"content": piece["text"]})
        elif "done" in piece:
            yield event({}, _reason(piece))
            if usage:
                yield _event({**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(piece)})
    yield b"data: [DONE]\n\n"


async def _until(answer: Answer, stops: list[str]) -> AsyncIterator[dict[str, Any]]:
    """The answer up to the first of the `stops`, which is not part of it. Holds back what may be the beginning of one."""
    held = ""
    made = 0
    async for piece in answer:
        if "text" in piece and stops:
            made += 1
            held += piece["text"]
            found = min((held.find(stop) for stop in stops if stop in held), default=-1)
            if found >= 0:
                answer.stop()
                yield {"text": held[:found]}
                yield {"done": True, "stop_reason": "stop", "tokens": made, "prompt_tokens": 0}
                return
            keep = max((_overlap(held, stop) for stop in stops), default=0)
            yield {"text": held[: len(held) - keep]}
            held = held[len(held) - keep :]
        else:
            if "done" in piece and held:
                yield {"text": held}
            yield piece


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _reason(piece: dict[str, Any]) -> str:
    return "length" if piece.get("stop_reason") == "length" else "stop"


def _usage(piece: dict[str, Any]) -> dict[str, int]:
    prompt, made = piece.get("prompt_tokens", 0), piece.get("tokens", 0)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
