"""What lives as long as the server: the supervisor of runs, the pool of chat models, the watches, the housekeeping."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from afina import actions
from afina.chat.pool import ChatPool
from afina.core.errors import AfinaError
from afina.core.paths import Home
from afina.data import watch
from afina.runs.supervisor import Supervisor
from afina.web.follow import Hub
from afina.web.settings import ServerSettings

HOUSEKEEPING = 3.0
"""Seconds between two looks at idle models and new dataset files."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start all of it, and end all of it but the runs, which go on by themselves."""
    home: Home = app.state.home
    settings: ServerSettings = app.state.settings
    stop: threading.Event = app.state.stop
    stop.clear()
    app.state.hub = Hub(home)
    app.state.chat = ChatPool(settings.chat_models, settings.chat_idle_seconds)
    threads = [
        threading.Thread(target=_keep_house, args=(home, app.state.chat, stop), name="housekeeping", daemon=True)
    ]
    if settings.supervise:
        supervisor = Supervisor(home)
        threads.append(threading.Thread(target=supervisor.run, args=(stop,), name="supervisor", daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        await asyncio.to_thread(app.state.chat.close)
        for thread in threads:
            await asyncio.to_thread(thread.join, 5.0)


def _keep_house(home: Home, pool: ChatPool, stop: threading.Event) -> None:
    with watch.until(stop):
        while not stop.wait(HOUSEKEEPING):
            pool.sweep()
            try:
                actions.refresh_datasets(home)
            except AfinaError:
                if not stop.is_set():  # a look that was ended in the middle
                    raise


class UntilStopped:
    """ASGI middleware: whatever reads a large file for an answer ends with the server, for nobody waits for it then."""

    def __init__(self, app: ASGIApp, stop: threading.Event) -> None:
        self.app = app
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        with watch.until(self._stop):
            await self.app(scope, receive, send)
