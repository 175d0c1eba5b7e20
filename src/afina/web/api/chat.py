"""`/api/v1/chat`: questions to models, answered as they are made."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from afina.chat.protocol import Question
from afina.web.api.records import ChatRequest
from afina.web.language import speaker
from afina.web.talk import Answer, Spoken, ask, problem

router = APIRouter(tags=["chat"])
LINES = "application/x-ndjson"


@router.post(
    "/chat",
    response_class=Response,
    responses={200: {"description": "One JSON object a line.", "content": {LINES: {"schema": {"type": "string"}}}}},
)
async def chat(request: Request, body: ChatRequest) -> Response:
    """Ask a model.

    The answer comes as lines: `{"phase": "loading"}` when the model has to be loaded first, `{"phase": "answering"}`,
    `{"text": "…"}` …, and at last `{"done": true, "stop_reason", "tokens", "tokens_per_second", "precision",
    "loss_rise"}` or the error shape. Closing the connection stops the answer.
    """
    question = Question(
        [message.model_dump() for message in body.messages], body.max_tokens, body.temperature, body.top_p, body.seed
    )
    answer = await ask(request, body.model, question, body.precision)
    return Spoken(answer, _lines(request, answer), LINES)


async def _lines(request: Request, answer: Answer) -> AsyncIterator[bytes]:
    write = speaker(request)
    answering = False
    async for piece in answer:
        if "loading" in piece:
            yield _line({"phase": "loading"})
            continue
        if not answering and "error" not in piece:
            answering = True
            yield _line({"phase": "answering"})
        if error := problem(piece):
            yield _line(error.as_json(write.write))
        elif "ready" not in piece:
            yield _line(piece)


def _line(value: object) -> bytes:
    return orjson.dumps(value) + b"\n"
