"""A run followed by many readers: nothing lost, nothing twice, one look at the files for all."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from afina import actions
from afina.core.events import Phase, Step, Warn
from afina.core.messages import say
from afina.core.paths import Home
from afina.runs.log import EventLog
from tests.web.conftest import ADDRESS, SETTINGS, add_pairs, create_app

SOCKETS = ADDRESS.replace("http", "ws") + "/api/v1/"


@pytest.fixture
def run_folder(with_model: Home) -> Path:
    """A run that waits in the queue; what it says is written by the test."""
    add_pairs(with_model)
    return with_model.runs / actions.start_run(with_model, {"model": "small", "dataset": "sums.json"}).id


@pytest.fixture
def app(with_model: Home) -> FastAPI:
    return create_app(with_model, SETTINGS)


def step(number: int) -> Step:
    return Step(number, 100, number / 10, 2.0 / number, 1e-4, 0.5, 100, 50.0, 10**9, 10.0)


def read_until(socket: Any, done: Any, seconds: float = 10.0) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        messages.append(socket.receive_json())
        if done(messages):
            return messages
    raise AssertionError(messages)


def events_of(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for message in messages for event in message.get("events", [])]


def test_history_then_what_follows(client: TestClient, run_folder: Path) -> None:
    log = EventLog(run_folder)
    log.append(step(1))
    history = client.get(f"/api/v1/runs/{run_folder.name}/events").json()
    assert [event["type"] for event in history["events"]] == ["phase", "step"]
    assert history["offset"] == log.size()
    with client.websocket_connect(f"{SOCKETS}runs/{run_folder.name}/live?events={history['offset']}") as socket:
        read_until(socket, lambda messages: "run" in messages[-1])
        log.append(step(2))
        log.append(step(3))
        messages = read_until(socket, lambda messages: len(events_of(messages)) == 2)
    assert [event["step"] for event in events_of(messages)] == [2, 3]
    offsets = [message["events_offset"] for message in messages if "events" in message]
    assert offsets[-1] == log.size()


def test_a_line_that_is_half_written_waits(client: TestClient, run_folder: Path) -> None:
    log = EventLog(run_folder)
    start = log.size()
    line = b'{"seq": 1, "time": 1.0, "type": "phase", "name": "training"}\n'
    with log.path.open("ab") as file:
        file.write(line[:20])
    assert client.get(f"/api/v1/runs/{run_folder.name}/events?offset={start}").json() == {"events": [], "offset": start}
    with client.websocket_connect(f"{SOCKETS}runs/{run_folder.name}/live?events={start}") as socket:
        read_until(socket, lambda messages: "run" in messages[-1])
        with log.path.open("ab") as file:
            file.write(line[20:])
        messages = read_until(socket, lambda messages: events_of(messages))
    assert events_of(messages)[0]["name"] == "training"


def test_the_console_from_its_end(client: TestClient, run_folder: Path) -> None:
    console = run_folder / "console.log"
    console.write_text("first\nsecond ção\nthird\n", encoding="utf-8")
    whole = client.get(f"/api/v1/runs/{run_folder.name}/console").json()
    assert whole == {"text": "first\nsecond ção\nthird\n", "offset": console.stat().st_size}
    assert client.get(f"/api/v1/runs/{run_folder.name}/console?offset=-8").json()["text"] == "third\n"
    with client.websocket_connect(f"{SOCKETS}runs/{run_folder.name}/live?console=-8") as socket:
        messages = read_until(socket, lambda messages: any("console" in message for message in messages))
        assert [message["console"] for message in messages if "console" in message] == ["third\n"]
        with console.open("a") as file:
            file.write("fourth\n")
        messages = read_until(socket, lambda messages: any("console" in message for message in messages))
    said = [message for message in messages if "console" in message]
    assert said[0]["console"] == "fourth\n"
    assert said[0]["console_offset"] == console.stat().st_size


def test_sentences_come_in_the_readers_language(client: TestClient, run_folder: Path) -> None:
    EventLog(run_folder).append(Warn("odd", say("There is nothing at this address.")))
    address = f"/api/v1/runs/{run_folder.name}/events"
    texts = {client.get(address, headers={"Accept-Language": language}).json()["events"][-1]["message"]["text"] for language in ("en", "tet", "pt", "id")}  # fmt: skip
    assert len(texts) == 4
    headers = {"Accept-Language": "tet"}
    with client.websocket_connect(f"{SOCKETS}runs/{run_folder.name}/live", headers=headers) as socket:
        messages = read_until(socket, lambda messages: len(events_of(messages)) == 2)
    assert events_of(messages)[-1]["message"]["text"] in texts - {"There is nothing at this address."}


def test_a_run_that_is_deleted_ends_its_sockets(client: TestClient, run_folder: Path) -> None:
    with client.websocket_connect(f"{SOCKETS}runs/{run_folder.name}/live") as socket:
        read_until(socket, lambda messages: "run" in messages[-1])
        assert client.delete(f"/api/v1/runs/{run_folder.name}").json() == {"deleted": run_folder.name}
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"{SOCKETS}runs/{run_folder.name}/live"):
        pass


def test_the_strip_shows_what_waits(client: TestClient, run_folder: Path) -> None:
    with client.websocket_connect(f"{SOCKETS}live") as socket:
        runs = socket.receive_json()["runs"]
        assert [(run["id"], run["status"]) for run in runs] == [(run_folder.name, "queued")]
        client.post(f"/api/v1/runs/{run_folder.name}/stop")
        read_until(socket, lambda messages: messages[-1] == {"runs": []})


def test_many_readers_cost_one_look(client: TestClient, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = actions.run_events

    def counted(home: Home, ref: str, offset: int) -> Any:
        reads.append(offset)
        return read(home, ref, offset)

    monkeypatch.setattr("afina.web.follow.actions.run_events", counted)
    log = EventLog(run_folder)
    got: list[int] = []

    def follow() -> None:
        with client.websocket_connect(f"{SOCKETS}runs/{run_folder.name}/live") as socket:
            got.append(len(events_of(read_until(socket, lambda messages: len(events_of(messages)) >= 6))))

    threads = [threading.Thread(target=follow) for _ in range(10)]
    for thread in threads:
        thread.start()
    for number in range(1, 6):
        time.sleep(0.3)
        log.append(step(number))
    for thread in threads:
        thread.join(20)
    assert got == [6] * 10
    assert len(reads) < 20, reads


def test_watching_ends_with_the_last_reader(client: TestClient, run_folder: Path) -> None:
    hub = client.app.state.hub
    with client.websocket_connect(f"{SOCKETS}runs/{run_folder.name}/live") as socket:
        read_until(socket, lambda messages: "run" in messages[-1])
        assert len(hub._tasks) == 1
    until = time.monotonic() + 5
    while hub._tasks and time.monotonic() < until:
        time.sleep(0.02)
    assert not hub._tasks
    assert not hub._watches


def test_a_long_history_is_sent_small(client: TestClient, run_folder: Path) -> None:
    log = EventLog(run_folder)
    log.append(Phase("training"))
    with log.path.open("ab") as file:
        for number in range(2, 3002):
            line = '{"seq": %d, "time": 1795480000.1, "type": "step", "step": %d, "loss": 1.2345}\n'
            file.write((line % (number, number)).encode())
    answer = client.get(f"/api/v1/runs/{run_folder.name}/events")
    assert len(answer.json()["events"]) == 3002
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < log.size() / 8
    again = client.get(f"/api/v1/runs/{run_folder.name}/events", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""
