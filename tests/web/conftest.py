"""A server in this process for most tests, a real one in its own for those about processes and sockets."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from afina.core.paths import Home
from afina.web.app import create_app
from afina.web.settings import ServerSettings
from tests import tiny

ADDRESS = "http://127.0.0.1:8642"
SETTINGS = ServerSettings(supervise=False)


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the web process needs of a model: tokenizer and configuration. There are no weights, and none are missed."""
    folder = tmp_path_factory.mktemp("files") / "small"
    vocabulary = tiny.build_tokenizer(folder)
    config = f'{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": {vocabulary}, "max_position_embeddings": 512}}'
    (folder / "config.json").write_text(config, encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


@pytest.fixture
def with_model(home: Home, model_files: Path) -> Home:
    """A home that has one model, `small`."""
    shutil.copytree(model_files, home.models / "small")
    return home


@pytest.fixture
def app(home: Home) -> FastAPI:
    return create_app(home, SETTINGS)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A program on this machine: no cookies kept from pages, no browser headers."""
    with TestClient(app, base_url=ADDRESS, raise_server_exceptions=False) as made:
        yield made


@pytest.fixture
def login_client(home: Home) -> Iterator[TestClient]:
    """A program that talks to a server started with `--listen`; the password is "correct horse"."""
    made = create_app(
        home, ServerSettings(host="0.0.0.0", login=True, supervise=False, allowed_hosts=frozenset({"afina.example"}))
    )
    made.state.access.set_password("correct horse")
    with TestClient(made, base_url=ADDRESS, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def problems(answer: httpx.Response) -> list[dict[str, Any]]:
    """The problems of a failure, after checking its shape."""
    body = answer.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"code", "kind", "message", "problems"}
    for problem in error["problems"]:
        assert set(problem) == {"code", "field", "value", "message", "remedy"}
        assert problem["message"]
    assert error["code"] == error["problems"][0]["code"]
    return list(error["problems"])


def add_pairs(home: Home, name: str = "sums.json", rows: int = 12) -> None:
    """A small dataset in Alpaca form."""
    items = [f'{{"instruction": "What is {n} plus {n}?", "output": "It is {2 * n}."}}' for n in range(rows)]
    (home.datasets / name).write_text(f"[{', '.join(items)}]", encoding="utf-8")


class Server:
    """A real server process."""

    def __init__(self, home: Home, port: int, *more: str) -> None:
        self.home, self.port = home, port
        self.address = f"http://127.0.0.1:{port}"
        code = (
            "import sys; from pathlib import Path; from afina.core.paths import Home; from afina.web.serve import serve;"
            "serve(Home(Path(sys.argv[1])), port=int(sys.argv[2]), announce=lambda address: print(address, flush=True))"
        )
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(home.root), str(port), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().decode().strip() == self.address
        self.seconds = time.monotonic() - self.started

    def stop(self, how: int = signal.SIGINT) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(15)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def start_server(home: Home) -> Iterator[Callable[..., Server]]:
    """Start servers on this home; they are ended with the test."""
    made: list[Server] = []

    def start(port: int | None = None) -> Server:
        made.append(Server(home, port or free_port()))
        return made[-1]

    yield start
    for server in made:
        server.stop(getattr(signal, "SIGKILL", signal.SIGTERM))


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used so far."""
    import psutil

    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def is_running(pid: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    os.kill(pid, 0)
    return state != "Z"
