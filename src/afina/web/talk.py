"""A conversation for the web: models found by name, answers as an asynchronous stream that can be walked away from."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import HTTPConnection
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from afina import actions
from afina.chat.pool import ChatPool, Loadable, Ticket
from afina.chat.protocol import Precision, Question, problem_from_json
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.core.paths import Home

Piece = dict[str, Any]


class Answer:
    """An answer on its way: iterate over its pieces; whoever stops iterating stops the model."""

    def __init__(self, ticket: Ticket, pieces: asyncio.Queue[Piece]) -> None:
        self._ticket = ticket
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """`{"loading"}`, `{"ready", …}`, `{"text"}` …, and at last `{"done", …}` or `{"error": problem}`."""
        try:
            while True:
                piece = await self._pieces.get()
                yield piece
                if "done" in piece or "error" in piece:
                    return
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop the model, if it still answers."""
        self._ticket.cancel()


class Spoken(StreamingResponse):
    """An answer as the body of a response: when the reader goes away, or all is said, the model stops."""

    def __init__(self, answer: Answer, body: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(body, media_type=media_type, headers={"Cache-Control": "no-store"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces as they come."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.stop()


async def ask(connection: HTTPConnection, model: str, question: Question, precision: Precision = "auto") -> Answer:
    """Put a question to the model called `model`. Raises AfinaError when there is no such model or no room for it."""
    _check(question.messages)
    app = connection.app
    loadable = await asyncio.to_thread(find, app.state.home, model, precision)
    pool: ChatPool = app.state.chat
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[Piece] = asyncio.Queue()

    def hear(piece: Piece) -> None:
        with contextlib.suppress(RuntimeError):  # the server is ending and nobody listens any more
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    asking = asyncio.ensure_future(asyncio.to_thread(pool.ask, loadable, question, hear))
    try:
        return Answer(await asyncio.shield(asking), pieces)
    except asyncio.CancelledError:
        asking.add_done_callback(lambda done: None if done.exception() else done.result().cancel())
        raise


def find(home: Home, model: str, precision: Precision = "auto") -> Loadable:
    """The model called `model`, ready to be loaded."""
    ref = actions.resolve_model(home, model)
    return Loadable(ref.folder, tuple(ref.adapters), ref.chat_template, precision)


def problem(piece: Piece) -> AfinaError | None:
    """The error that a piece of an answer carries, if it does."""
    return problem_from_json(piece["error"]) if "error" in piece else None


def _check(messages: Sequence[dict[str, str]]) -> None:
    if messages[-1]["role"] not in ("user", "tool"):
        raise AfinaError(
            Problem(
                "nothing_asked",
                say(N_("The last message is not a question, so there is nothing to answer.")),
                say(N_("End the messages with one whose role is user.")),
                field="messages",
            )
        )
