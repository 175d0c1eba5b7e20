"""The pages' own files: small on the wire, kept for ever, and nothing beside them."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from afina.web.static import StaticFiles


def test_files_are_compressed_and_kept(app: FastAPI, client: TestClient) -> None:
    answer = client.get(app.state.static.url("base.css"))
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert answer.headers["content-encoding"] == "gzip"
    assert "immutable" in answer.headers["cache-control"]
    plain = client.get(app.state.static.url("base.css"), headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.text == answer.text


def test_an_old_address_gives_the_present_file_but_not_for_ever(client: TestClient) -> None:
    answer = client.get("/static/0123456789/base.css")
    assert answer.status_code == 200
    assert "immutable" not in answer.headers["cache-control"]


def test_a_changed_file_changes_every_address(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("first")
    files = StaticFiles(tmp_path)
    before = files.url("a.js")
    assert files.url("a.js") == before
    (tmp_path / "a.js").write_text("second, longer")
    files.forget()
    assert files.url("a.js") != before
    with pytest.raises(KeyError):
        files.url("b.js")


@pytest.mark.parametrize("path", ["/training", "/datasets", "/models", "/runs", "/chat"])
def test_a_first_visit_is_light(client: TestClient, path: str) -> None:
    """At most 60 KB and 10 requests, modules that load modules included."""
    page = client.get(path, headers={"Accept": "text/html"})
    wire = int(page.headers["content-length"])
    todo = set(re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text))
    seen: set[str] = set()
    while todo:
        address = todo.pop()
        seen.add(address)
        file = client.get(address)
        assert file.status_code == 200, address
        assert "immutable" in file.headers["cache-control"]
        wire += int(file.headers["content-length"])
        folder = address.rsplit("/", 1)[0]
        todo |= {f"{folder}/{name}" for name in re.findall(r'from "\./([^"]+)"', file.text)} - seen
    assert len(seen) + 1 <= 10, seen
    assert wire + 500 * (len(seen) + 1) <= 60_000, wire


def test_small_answers_are_left_alone(client: TestClient) -> None:
    answer = client.get("/api/v1/health")
    assert "content-encoding" not in answer.headers
    assert client.get("/api/v1/health", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_no_gzip_for_those_who_do_not_ask(client: TestClient) -> None:
    answer = client.get("/api/v1/settings", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in answer.headers
    assert "Accept-Encoding" in answer.headers["vary"]
    with client.stream("GET", "/api/v1/settings") as small:
        assert len(gzip.decompress(b"".join(small.iter_raw()))) == len(answer.content)
