"""A hub on 127.0.0.1, for tests: repositories out of folders, as huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

import pytest


class Hub(ThreadingHTTPServer):
    """Models by name and revision; `failing` files are not sent, of `halting` ones so many
    bytes and then nothing; `asked` and `starts` say what was sent, and from which byte on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, Path]] = {}
        self.names: dict[str, str] = {}
        self.gated: set[str] = set()
        self.failing: set[str] = set()
        self.halting: dict[str, int] = {}
        self.asked: list[str] = []
        self.starts: list[tuple[str, int]] = []
        self.closing = Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, repo: str, folder: Path, *names: str) -> str:
        """Publish a folder as a commit that `names` point to, and `main` where none is given; returns the commit."""
        listing = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]
        commit = hashlib.sha1(f"{repo} {folder} {listing}".encode(), usedforsecurity=False).hexdigest()
        self.models.setdefault(repo, {})[commit] = folder
        self.names |= {f"{repo}@{name}": commit for name in (*(names or ["main"]), commit)}
        return commit


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers meanwhile."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif parts[2:3] == ["resolve"]:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._send(404, b"{}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _describe(self, repo: str, rest: list[str]) -> None:
        commit = self._commit(repo, "/".join(rest[1:]) or "main")
        if commit is None:
            return
        files = [path for path in sorted(self.server.models[repo][commit].rglob("*")) if path.is_file()]
        base = self.server.models[repo][commit]
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": p.relative_to(base).as_posix(), "size": p.stat().st_size, "oid": _etag(p)}
                for p in files
            ]
            self._send(200, json.dumps(tree).encode())
            return
        siblings = [{"rfilename": p.relative_to(base).as_posix(), "size": p.stat().st_size} for p in files]
        self._send(200, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())

    def _commit(self, repo: str, name: str) -> str | None:
        if repo not in self.server.models:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        commit = self.server.names.get(f"{repo}@{name}")
        if commit is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _file(self, repo: str, revision: str, name: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        if repo in self.server.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        path = self.server.models[repo][commit] / name
        head = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": commit}
        if self.command == "GET":
            if name in self.server.failing:
                self._send(503, b"")
                return
            self.server.asked.append(name)
        body, status = path.read_bytes(), 200
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            head["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
        if self.command == "GET":
            self.server.starts.append((name, path.stat().st_size - len(body)))
        self._send(status, body, head, self.server.halting.get(name))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, halt: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:halt])
            if halt is not None:
                self.server.closing.wait(60)


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def reach(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub ask `address`."""
    for name, value in (("HF_ENDPOINT", address), ("HF_HUB_CACHE", str(cache)), ("HF_HUB_OFFLINE", "0")):
        monkeypatch.setenv(name, value)
    constants = {"ENDPOINT": address, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False}
    constants["HUGGINGFACE_CO_URL_TEMPLATE"] = address + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
