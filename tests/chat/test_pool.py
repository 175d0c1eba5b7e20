"""Models in processes of their own: answers, cancelling, room for a few, idleness, sudden death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from afina.chat.pool import ChatPool, Loadable
from afina.chat.protocol import Question, problem_as_json, problem_from_json
from afina.core.errors import AfinaError, Problem
from afina.core.messages import say

HELLO = [{"role": "user", "content": "Who are you?"}]
SHORT = Question(HELLO, max_tokens=8, temperature=0.0)
LONG = Question(
    HELLO, max_tokens=90_000, temperature=0.0
)  # the likeliest token is never one that ends this model's answer


@pytest.fixture(scope="module")
def pool() -> Iterator[ChatPool]:
    """One pool for all, for to start a worker takes seconds; the tests run in their order."""
    made = ChatPool(most=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def endless(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with no way to end an answer but its limit, so that there is time to interrupt it."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100_000}))
    return folder


def text_of(pieces: list[dict[str, Any]]) -> str:
    return "".join(piece.get("text", "") for piece in pieces)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_an_answer_comes_in_pieces(pool: ChatPool, endless: Path) -> None:
    pieces = list(pool.answer(Loadable(endless), SHORT))
    assert pieces[0] == {"loading": True}
    assert pieces[1]["ready"]
    done = pieces[-1]
    assert done["done"]
    assert done["stop_reason"] in ("stop", "length")
    assert done["tokens"] <= 8
    assert done["prompt_tokens"] > 3
    assert done["precision"] in ("float32", "bfloat16", "int8")
    assert done["loss_rise"] < 0.01
    again = list(pool.answer(Loadable(endless), SHORT))
    assert text_of(again) == text_of(pieces)
    assert not any("loading" in piece for piece in again)
    assert len(pool.loaded()) == 1
    exact = list(pool.answer(Loadable(endless, precision="float32"), SHORT))[-1]
    assert (exact["precision"], exact["loss_rise"]) == ("float32", pytest.approx(0, abs=1e-6))


def test_the_same_seed_says_the_same(pool: ChatPool, endless: Path) -> None:
    said = [text_of(list(pool.answer(Loadable(endless), Question(HELLO, 20, 1.0, 1.0, seed)))) for seed in (7, 7, 8)]
    assert said[0] == said[1] != said[2]


def test_an_answer_can_be_stopped(pool: ChatPool, endless: Path) -> None:
    heard: list[dict[str, Any]] = []
    ticket = pool.ask(Loadable(endless), LONG, heard.append)
    wait_for(lambda: any("text" in piece for piece in heard))
    ticket.cancel()
    wait_for(lambda: any("done" in piece or "error" in piece for piece in heard))
    assert heard[-1]["stop_reason"] == "cancelled"
    assert heard[-1]["tokens"] < 50_000
    waiting = pool.answer(Loadable(endless), LONG)
    assert next(piece for piece in waiting if "text" in piece)
    waiting.close()  # whoever stops reading stops the model
    assert list(pool.answer(Loadable(endless), SHORT))[-1]["done"]


def test_two_models_answer_side_by_side_and_a_third_must_wait(pool: ChatPool, endless: Path, tiny_model: Path) -> None:
    first = pool.answer(Loadable(endless), LONG)
    assert next(piece for piece in first if "text" in piece)
    heard: list[dict[str, Any]] = []
    second = pool.ask(Loadable(tiny_model), Question(HELLO, 20, 1.0, 1.0, 1), heard.append)
    with pytest.raises(AfinaError) as caught:
        pool.ask(Loadable(endless.parent), SHORT, heard.append)
    assert (caught.value.code, caught.value.kind) == ("chat_full", "conflict")
    wait_for(lambda: any("done" in piece for piece in heard))
    assert next(piece for piece in first if "text" in piece), "the first goes on meanwhile"
    first.close()
    second.cancel()
    assert {item.model.model for item in pool.loaded()} == {endless, tiny_model}


def test_too_long_a_conversation_is_explained(pool: ChatPool, tiny_model: Path) -> None:
    long = Question([{"role": "user", "content": "coffee grows in the hills " * 400}], max_tokens=5)
    problem = list(pool.answer(Loadable(tiny_model), long))[-1]["error"]
    assert problem["code"] == "prompt_too_long"
    fitting = Question([{"role": "user", "content": "hello"}], max_tokens=100_000, temperature=1.0, seed=3)
    done = list(pool.answer(Loadable(tiny_model), fitting))[-1]
    assert done["tokens"] + done["prompt_tokens"] <= 512


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_worker_is_explained_and_replaced(pool: ChatPool, endless: Path) -> None:
    answer = pool.answer(Loadable(endless), LONG)
    assert next(piece for piece in answer if "text" in piece)
    os.kill(next(item.pid for item in pool.loaded() if item.model.model == endless), signal.SIGKILL)
    problem = list(answer)[-1]["error"]
    assert problem["code"] == "chat_killed"
    assert list(pool.answer(Loadable(endless), SHORT))[-1]["done"]


def test_the_least_recently_used_model_makes_room_and_a_broken_one_is_explained(
    pool: ChatPool, endless: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")
    list(pool.answer(Loadable(tiny_model), SHORT))
    list(pool.answer(Loadable(endless), SHORT))
    pids = {item.model.model: item.pid for item in pool.loaded()}
    error = problem_from_json(list(pool.answer(Loadable(tmp_path / "broken"), SHORT))[-1]["error"])
    assert error.code == "broken_weights"
    assert error.problems[0].remedy
    wait_for(lambda: not psutil.pid_exists(pids[tiny_model]))
    assert endless in {item.model.model for item in pool.loaded()}


def test_a_model_that_is_deleted_is_let_go(pool: ChatPool, endless: Path) -> None:
    list(pool.answer(Loadable(endless), SHORT))
    pool.unload(endless.parent / "other")
    assert endless in {item.model.model for item in pool.loaded()}
    pool.unload(endless)
    assert endless not in {item.model.model for item in pool.loaded()}


def test_an_idle_model_is_let_go(pool: ChatPool, tiny_model: Path) -> None:
    list(pool.answer(Loadable(tiny_model), SHORT))
    pids = [item.pid for item in pool.loaded()]
    pool.sweep()
    assert pool.loaded()
    pool.idle_seconds = 0.0
    time.sleep(0.01)
    pool.sweep()
    assert pool.loaded() == []
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    pool.idle_seconds = 600.0


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_no_worker_outlives_a_killed_server(tiny_model: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from afina.chat.pool import *; from afina.chat.protocol import Question;"
        "pool = ChatPool(); list(pool.answer(Loadable(Path(sys.argv[1])), Question([{'role': 'user', 'content': 'hi'}], 3)));"
        "print(pool.loaded()[0].pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tiny_model)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 10)


def test_problems_travel_with_their_sentences() -> None:
    error = AfinaError(Problem("odd", say("It is {n}.", n=3), say("Wait."), "field"), "conflict")
    back = problem_from_json(json.loads(json.dumps(problem_as_json(error))))
    assert (back.kind, back.problems) == (error.kind, error.problems)


def test_the_pool_needs_no_torch() -> None:
    code = "import afina.chat.pool, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
