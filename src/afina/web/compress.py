"""Gzip and ETag for answers that come in one piece; streams pass through as they are.

A curve's history is a few hundred kilobytes of JSON that shrinks to a tenth, and a page that asks again for what it
already has gets 304 and no body.
"""

from __future__ import annotations

import gzip
import hashlib

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SMALLEST = 600
LARGE = 200_000
COMPRESSED = ("text/", "application/json", "image/svg+xml")


class Compress:
    """ASGI middleware around `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and shrink the answer when it comes in one piece."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        start: Message = {}
        streaming = False

        async def forward(message: Message) -> None:
            nonlocal start, streaming
            if message["type"] == "http.response.start":
                start = message
                return
            if streaming or message["type"] != "http.response.body":
                await send(message)
                return
            if message.get("more_body"):
                streaming = True
                await send(start)
                await send(message)
                return
            await send_whole(message.get("body", b""))

        async def send_whole(body: bytes) -> None:
            headers = MutableHeaders(raw=start["headers"])
            kind = headers.get("content-type", "")
            plain = "content-encoding" not in headers and len(body) >= SMALLEST and kind.startswith(COMPRESSED)
            if (
                scope["method"] == "GET"
                and start["status"] == 200
                and body
                and "immutable" not in headers.get("cache-control", "")
            ):
                tag = f'W/"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
                headers["ETag"] = tag
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-cache, private"
                if asked.get("if-none-match") == tag:
                    start["status"] = 304
                    for name in ("content-length", "content-type"):
                        if name in headers:
                            del headers[name]
                    body, plain = b"", False
            if plain:
                headers.add_vary_header("Accept-Encoding")
                if "gzip" in asked.get("accept-encoding", ""):
                    body = (
                        await run_in_threadpool(gzip.compress, body, 6) if len(body) > LARGE else gzip.compress(body, 6)
                    )
                    headers["Content-Encoding"] = "gzip"
                    headers["Content-Length"] = str(len(body))
            start["headers"] = headers.raw
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, forward)
