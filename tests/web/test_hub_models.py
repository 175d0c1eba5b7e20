"""A model of the hub, asked for over HTTP: looked up at once, so that what is wrong is the answer and not a broken model."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from afina import actions
from afina.core.paths import Home
from tests import hub_server
from tests.hub_server import reach


def test_what_the_hub_says_is_the_answer(
    client: TestClient, home: Home, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(source: str, language: str = "en") -> tuple[int, str, str]:
        answer = client.post("/api/v1/models", json={"source": source}, headers={"Accept-Language": language})
        error = answer.json()["error"]
        return answer.status_code, error["code"], error["message"]

    with hub_server.serving() as hub:
        reach(hub.address, tmp_path / "cache", monkeypatch)
        pickled = tmp_path / "pickled"
        pickled.mkdir()
        for name in ("config.json", "pytorch_model.bin"):
            (pickled / name).write_text("{}")
        hub.put("someone/pickled", pickled)
        commit = hub.put("someone/small", tiny_model)
        assert post("hub:someone/nothing")[:2] == (404, "not_found")
        assert post("hub:someone/pickled")[:2] == (422, "unsafe_weights")
        assert post("hub:no name")[:2] == (422, "bad_name")
        assert (
            post("hub:someone/nothing", "pt")[2]
            == "O hub não tem um modelo “someone/nothing” que se possa ler sem conta."
        )
        begun = client.post("/api/v1/models", json={"source": "hub:someone/small", "name": "mine"})
        assert (begun.status_code, begun.json()["status"]) == (202, "adding")
        assert begun.json()["source"] == f"hub:someone/small@{commit}"
        actions.delete_model(home, "mine")
    reach("http://127.0.0.1:9", tmp_path / "empty", monkeypatch)
    assert post("hub:someone/small")[:2] == (503, "no_network")
    assert client.get("/api/v1/models").json() == []
