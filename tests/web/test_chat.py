"""Chat through a real server: streams, walking away, two models at once, OpenAI's shape."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from starlette.testclient import TestClient

from afina.core.paths import Home
from afina.web.openai import _overlap
from tests.web.conftest import Server, free_port, problems

HELLO = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one model whose answers end only at their limit."""
    home = Home(tmp_path_factory.mktemp("chat") / "home").create()
    shutil.copytree(tiny_model, home.models / "tiny")
    config = json.loads((home.models / "tiny" / "config.json").read_text())
    (home.models / "tiny" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100_000}))
    made = Server(home, free_port())
    yield made
    made.stop(getattr(signal, "SIGKILL", signal.SIGTERM))


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=120) as client:
        yield client


def ask(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, "max_tokens": 8, "temperature": 0, **more}


def test_an_answer_comes_line_by_line(http: httpx.Client) -> None:
    with http.stream("POST", "/api/v1/chat", json=ask()) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert "content-encoding" not in answer.headers
        lines = [json.loads(line) for line in answer.iter_lines()]
    phases = [line["phase"] for line in lines if "phase" in line]
    assert phases == ["loading", "answering"]
    assert lines[-1]["done"]
    assert lines[-1]["tokens"] == 8
    assert lines[-1]["precision"]
    again = http.post("/api/v1/chat", json=ask()).text.splitlines()
    assert json.loads(again[0]) == {"phase": "answering"}


def test_walking_away_stops_the_model(http: httpx.Client) -> None:
    with http.stream("POST", "/api/v1/chat", json=ask(max_tokens=90_000)) as answer:
        for line in answer.iter_lines():
            if "text" in line:
                break
    begun = time.monotonic()
    assert json.loads(http.post("/api/v1/chat", json=ask()).text.splitlines()[-1])["done"]
    assert time.monotonic() - begun < 20, "ninety thousand tokens would take minutes"


def test_what_cannot_be_answered_is_explained(http: httpx.Client) -> None:
    missing = http.post("/api/v1/chat", json=ask(model="none"))
    assert (missing.status_code, problems(missing)[0]["code"]) == (404, "model_not_found")
    silent = http.post("/api/v1/chat", json=ask(messages=[*HELLO, {"role": "assistant", "content": "Me."}]))
    assert (silent.status_code, problems(silent)[0]["code"]) == (422, "nothing_asked")
    long = {"messages": [{"role": "user", "content": "coffee in the hills " * 20_000}]}
    last = json.loads(
        http.post("/api/v1/chat", json=ask(**long), headers={"Accept-Language": "pt"}).text.splitlines()[-1]
    )
    assert last["error"]["code"] == "prompt_too_long"
    assert last["error"]["message"] != problems_in_english(http, long)


def problems_in_english(http: httpx.Client, more: dict[str, Any]) -> str:
    last = json.loads(http.post("/api/v1/chat", json=ask(**more)).text.splitlines()[-1])
    return str(last["error"]["message"])


def test_openai_at_once(http: httpx.Client) -> None:
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["tiny"]
    body = ask(messages=[{"role": "developer", "content": "Be brief."}, *HELLO], user="someone", presence_penalty=0)
    answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["total_tokens"] == 8 + answer["usage"]["prompt_tokens"]


def test_openai_as_a_stream(http: httpx.Client) -> None:
    whole = http.post("/v1/chat/completions", json=ask()).json()["choices"][0]["message"]["content"]
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]
    body = ask(messages=[{"role": "user", "content": parts}], stream=True, stream_options={"include_usage": True})
    lines = [line for line in http.post("/v1/chat/completions", json=body).text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"]) == whole
    assert events[-1]["usage"]["completion_tokens"] == 8
    cut = http.post("/v1/chat/completions", json=ask(stop=[whole[3:5]])).json()["choices"][0]
    assert cut["message"]["content"] == whole[: whole.find(whole[3:5])]
    assert cut["finish_reason"] == "stop"


def test_openai_refuses_what_it_cannot_do(http: httpx.Client) -> None:
    for more in ({"n": 2}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {"model": "none"}):
        answer = http.post("/v1/chat/completions", json=ask(**more))
        assert answer.status_code in (404, 422)
        problems(answer)


def test_a_stop_may_be_spread_over_pieces() -> None:
    assert [_overlap(text, "###") for text in ("abc", "ab#", "ab##", "###")] == [0, 1, 2, 2]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_deleting_a_model_and_ending_the_server_end_its_processes(server: Server, http: httpx.Client) -> None:
    http.post("/api/v1/chat", json=ask())
    workers = psutil.Process(server.process.pid).children()
    assert len(workers) == 1
    assert http.delete("/api/v1/models/tiny").status_code == 200
    _, alive = psutil.wait_procs(workers, 10)
    assert not alive
    server.stop(signal.SIGTERM)
    assert server.process.returncode is not None


def test_a_page_that_is_not_asked_for_loads_nothing(client: TestClient) -> None:
    client.get("/chat", headers={"Accept": "text/html"})
    assert client.app.state.chat.loaded() == []
