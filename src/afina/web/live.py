"""The live sockets: one run followed by byte offset, and the strip of everything in progress.

What is sent: `{"events": […], "events_offset": n}`, `{"console": "…", "console_offset": n}`, `{"run": RunInfo}`; on the
strip `{"runs": [RunInfo, …]}`. A reader that was away asks again with the last offsets it saw and misses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import anyio
from fastapi import APIRouter, Query
from starlette.websockets import WebSocket, WebSocketDisconnect

from afina import actions
from afina.core.errors import AfinaError
from afina.web.follow import Hub, RunWatch
from afina.web.language import speaker

router = APIRouter()
GONE = 4404
"""The code a socket is closed with when there is no such run."""


@router.websocket("/api/v1/runs/{ref}/live")
async def run(
    socket: WebSocket,
    ref: str,
    events: Annotated[int, Query(ge=0, le=2**43)] = 0,
    console: Annotated[int | None, Query(ge=-(2**43), le=2**43)] = None,
) -> None:
    """Follow a run. `console` negative: begin with that many last bytes; absent: no console."""
    hub: Hub = socket.app.state.hub
    try:
        info = await asyncio.to_thread(actions.get_run, hub.home, ref)
    except AfinaError:
        await socket.close(GONE)
        return
    await socket.accept()
    async with hub.run(info) as watch:
        await _until_gone(socket, lambda: _send_run(socket, watch, events, console))


@router.websocket("/api/v1/live")
async def strip(socket: WebSocket) -> None:
    """Follow everything in progress."""
    hub: Hub = socket.app.state.hub
    await socket.accept()
    write = speaker(socket)

    async def send() -> None:
        seen = 0
        while True:
            seen = await watch.wait(seen)
            await _send(socket, watch.state(write))

    async with hub.strip() as watch:
        await _until_gone(socket, send)


async def _send_run(socket: WebSocket, watch: RunWatch, events: int, console: int | None) -> None:
    write = speaker(socket)
    seen, state = -1, b""
    while True:
        seen = await watch.wait(seen)
        while True:
            message, after = await watch.events(events, write)
            if not message:
                break
            await _send(socket, message)
            events = after
        while console is not None:
            message, after = await watch.console(console)
            if not message:
                break
            await _send(socket, message)
            console = after
        now = watch.state(write)
        if now != state:
            state = now
            await _send(socket, now)


async def _send(socket: WebSocket, message: bytes) -> None:
    await socket.send_text(message.decode())


async def _until_gone(socket: WebSocket, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work` until the reader closes the socket, or the run they follow is deleted."""
    async with anyio.create_task_group() as both:

        async def send() -> None:
            try:
                await work()
            except AfinaError:
                await socket.close(GONE)
            except WebSocketDisconnect:
                both.cancel_scope.cancel()

        both.start_soon(send)
        while (await socket.receive())["type"] != "websocket.disconnect":
            continue
        both.cancel_scope.cancel()
