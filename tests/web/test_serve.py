"""The real server: how soon it answers, what it never loads, how it ends, what many readers cost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import websockets

from afina import actions
from afina.core.errors import AfinaError
from afina.core.events import Step
from afina.core.paths import Home
from afina.runs.log import EventLog
from afina.web.serve import serve
from tests.web.conftest import Server, add_pairs, cpu_seconds

Start = Callable[..., Server]
T = TypeVar("T")


def apart(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a thread of its own: a browser of other tests leaves a running loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def test_it_answers_soon_and_never_loads_torch(start_server: Start, with_model: Home) -> None:
    add_pairs(with_model)
    server = start_server()
    assert server.seconds < 6.0, "measured 1.0 to 1.7 s alone; other tests share the machine"
    with httpx.Client(base_url=server.address) as client:
        for path in (
            "/training",
            "/datasets",
            "/models",
            "/runs",
            "/chat",
            "/api/v1/docs",
            "/api/v1/datasets/sums.json",
        ):
            assert client.get(path, headers={"Accept": "text/html"}).status_code == 200, path
        client.get("/api/v1/datasets/sums.json/rows")
        client.get("/api/v1/machine", timeout=60)
    if sys.platform == "linux":
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "python" in mapped
        assert "torch" not in mapped


def test_a_taken_port_is_explained(start_server: Start, home: Home) -> None:
    server = start_server()
    with pytest.raises(AfinaError) as caught:
        serve(home, port=server.port)
    assert caught.value.code == "already_running"
    assert str(server.port) in str(caught.value)
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AfinaError) as caught:
            serve(home, port=port)
    assert caught.value.code == "port_taken"
    assert f"--port {port + 1}" in str(caught.value.problems[0].remedy)


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("203.0.113.1", 0), ("127.0.0.1", 70000)])
def test_an_impossible_address_is_explained(home: Home, host: str, port: int) -> None:
    with pytest.raises(AfinaError) as caught:
        serve(home, host=host, port=port)
    assert caught.value.code == "no_such_address"


def test_listening_beyond_this_machine_demands_a_password(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFINA_PASSWORD", raising=False)
    monkeypatch.delenv("AFINA_TOKEN", raising=False)
    with pytest.raises(AfinaError) as caught:
        serve(home, host="0.0.0.0", port=0)
    assert caught.value.code == "no_password"
    monkeypatch.setenv("AFINA_TOKEN", "guess")
    with pytest.raises(AfinaError) as caught:
        serve(home, host="0.0.0.0", port=0)
    assert caught.value.code == "short_token"
    monkeypatch.setenv("AFINA_PASSWORD", "guess")
    with pytest.raises(AfinaError) as caught:
        serve(home, host="0.0.0.0", port=0)
    assert caught.value.code == "short_password"
    assert "AFINA_PASSWORD" not in os.environ


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_it_ends_when_asked_although_pages_are_open(start_server: Start) -> None:
    server = start_server()

    async def hold() -> float:
        async with websockets.connect(server.address.replace("http", "ws") + "/api/v1/live") as socket:
            await socket.recv()
            begun = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            await asyncio.to_thread(server.process.wait, 15)
            return time.monotonic() - begun

    assert apart(hold()) < 6.0
    assert server.process.returncode in (0, -signal.SIGINT, 130)


def test_twenty_pages_on_a_live_run_cost_little(start_server: Start, with_model: Home) -> None:
    """Each page holds two sockets, as the Training page does; the run says something ten times a second."""
    add_pairs(with_model)
    run = actions.start_run(with_model, {"model": "small", "dataset": "sums.json"}).id
    actions.stop_run(with_model, run)
    log = EventLog(with_model.runs / run)
    server = start_server()
    address = server.address.replace("http", "ws") + "/api/v1/"
    seconds, tabs = 4.0, 20

    async def follow(path: str, count: list[int]) -> None:
        async with websockets.connect(address + path) as socket:
            async for message in socket:
                count.append(len(json.loads(message).get("events", [])))

    async def measure() -> tuple[float, list[list[int]]]:
        counts: list[list[int]] = [[] for _ in range(tabs)]
        tasks = [asyncio.create_task(follow(f"runs/{run}/live", count)) for count in counts]
        tasks += [asyncio.create_task(follow("live", [])) for _ in range(tabs)]
        await asyncio.sleep(1.5)
        before = cpu_seconds(server.process.pid)
        for number in range(1, int(seconds * 10) + 1):
            log.append(Step(number, 100, 0.1, 1.0, 1e-4, 0.5, 100, 50.0, 10**9, 10.0))
            await asyncio.sleep(0.1)
        used = cpu_seconds(server.process.pid) - before
        await asyncio.sleep(1.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return used / seconds, counts

    share, counts = apart(measure())
    assert {sum(count) for count in counts} == {int(seconds * 10) + 2}
    assert share < 0.25, "measured 1.8 % of a core; the limit leaves room for a busy machine"
