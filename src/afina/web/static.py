"""The pages' own files, kept in memory, compressed once and cached for ever by the browser.

Their URLs carry a version made from their content, `/static/<version>/base.css`, so a browser may keep each of them
without asking again. Only names found in the folder are served: there is no path to follow out of it.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static"
FOREVER = "public, max-age=31536000, immutable"
LOOK = 1.0
"""Seconds between looks at the folder."""
COMPRESSED = ("text/", "application/json", "image/svg+xml", "application/manifest+json")
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    compressed: bytes | None
    media_type: str


class StaticFiles:
    """All files under `folder`, read again when one of them changed (which happens while developing)."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._stamp: tuple[tuple[str, int, int], ...] | None = None
        self._files: dict[str, _File] = {}
        self._version = ""
        self._looked = float("-inf")
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        """Ten hexadecimal digits of the content of all files."""
        self._refresh()
        return self._version

    def url(self, name: str) -> str:
        """The versioned URL of the file `name`; raises KeyError when there is none, so a typing error shows at once."""
        self._refresh()
        if name not in self._files:
            raise KeyError(name)
        return f"/static/{self._version}/{name}"

    async def serve(self, request: Request) -> Response:
        """Answer `/static/{version}/{name}`; with an old version the present file is sent, not to be kept."""
        self._refresh()
        file = self._files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        current = request.path_params["version"] == self._version
        headers = {"Cache-Control": FOREVER if current else "no-cache", "Vary": "Accept-Encoding"}
        content = file.content
        if file.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            content = file.compressed
            headers["Content-Encoding"] = "gzip"
        return Response(content, media_type=file.media_type, headers=headers)

    def forget(self) -> None:
        """Look at the folder again with the next request, however soon it comes."""
        self._looked = float("-inf")

    def _refresh(self) -> None:
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        stamp = tuple(
            (str(path.relative_to(self.folder)), path.stat().st_mtime_ns, path.stat().st_size)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        )
        if stamp == self._stamp:
            return
        with self._lock:
            self._files = {name.replace("\\", "/"): _read(self.folder / name) for name, _, _ in stamp}
            digest = hashlib.sha256()
            for name, file in self._files.items():
                digest.update(name.encode() + b"\0" + file.content + b"\0")
            self._version = digest.hexdigest()[:10]
            self._stamp = stamp


def _read(path: Path) -> _File:
    content = path.read_bytes()
    guessed = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    compressed = gzip.compress(content, 9, mtime=0) if guessed.startswith(COMPRESSED) else None
    if compressed is not None and len(compressed) >= len(content):
        compressed = None
    return _File(content, compressed, guessed)
