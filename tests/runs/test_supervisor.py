"""The queue with real processes and real kills."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from afina import actions
from afina.core.errors import AfinaError
from afina.core.paths import Home
from afina.registry import database
from afina.registry import runs as rows
from afina.runs.index import index
from afina.runs.launch import living, memory_kills, process_of
from afina.runs.relief import memory_limit
from tests.runs import helpers
from tests.runs.helpers import finish, kill, start, steps, supervisor, until


@pytest.fixture
def home(home: Home) -> Home:
    return helpers.furnish(home)


def test_a_run_from_start_to_end(home: Home) -> None:
    run = start(home, "first")
    assert (run.status, run.queue_position, run.name) == ("queued", 1, "first")
    done = finish(home, run)
    assert (done.status, done.step, done.total_steps) == ("succeeded", 5, 5)
    assert (done.train_loss, done.validation_loss, done.best_step) == (0.4, 1.0, 5)
    assert done.sparkline == [2.0, 1.0, 0.6667, 0.5, 0.4]
    assert done.output == str(home.runs / run.id / "adapter")
    assert done.started
    assert done.ended
    assert done.created <= done.started <= done.ended
    events, end = actions.run_events(home, "first")
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert actions.run_events(home, "first", end) == ([], end)
    assert "hello from the worker" in actions.run_console(home, "first")[0]


def test_one_computes_at_a_time_in_the_order_of_the_queue_whoever_looks_after_it(home: Home) -> None:
    runs = [start(home, f"run {n}", steps=4, sleep=0.03) for n in range(4)]
    servers = [helpers.server(home) for _ in range(2)]
    keeper = supervisor(home)
    try:
        until(lambda: all(actions.get_run(home, run.id).status == "succeeded" for run in runs), keeper.tick, timeout=40)
    finally:
        for process in servers:
            kill(process)
    journal = (home.state / "journal").read_text().splitlines()
    assert journal == [f"{what} {run.id}" for run in runs for what in ("begin", "end")]


def test_a_killed_server_loses_nothing_and_the_next_one_adopts_the_run(home: Home) -> None:
    run = start(home, steps=60, sleep=0.03)
    waiting = start(home, "next")
    first = helpers.server(home)
    until(lambda: actions.get_run(home, run.id).step >= 3)
    kill(first)
    at_kill = actions.get_run(home, run.id).step
    until(lambda: actions.get_run(home, run.id).step > at_kill + 3)
    assert actions.get_run(home, waiting.id).status == "queued"
    second = helpers.server(home)
    try:
        until(lambda: actions.get_run(home, waiting.id).status == "succeeded", timeout=30)
    finally:
        kill(second)
    assert actions.get_run(home, run.id).status == "succeeded"
    assert steps(home, run) == list(range(1, 61))


def test_a_killed_worker_is_explained_and_the_run_goes_on_from_its_checkpoint(home: Home) -> None:
    run = start(home, steps=8, die="kill", at=3)
    keeper = supervisor(home)
    dead = finish(home, run, keeper)
    assert dead.status == "failed"
    assert dead.error is not None
    assert dead.error.code == "killed"
    assert "step 3" in dead.error.message
    assert "SIGKILL" in dead.error.message
    assert dead.resumable
    again = actions.resume_run(home, run.id)
    assert (again.status, again.error) == ("queued", None)
    done = finish(home, run, keeper)
    assert (done.status, done.step, done.error) == ("succeeded", 8, None)
    assert steps(home, run) == list(range(1, 9))


@pytest.mark.skipif(memory_kills() is None, reason="the kernel does not count")
def test_a_worker_killed_for_memory_goes_on_once_with_half_of_it(home: Home) -> None:
    run = start(home, steps=8, die="memory", at=3)
    waiting = start(home, "next")
    keeper = supervisor(home)
    done = finish(home, run, keeper)
    assert (done.status, done.step, done.error) == ("succeeded", 8, None)
    assert steps(home, run) == list(range(1, 9))
    told = [event for event in actions.run_events(home, run.id)[0] if event["type"] == "retry"]
    assert [event["step"] for event in told] == [3]
    assert "half the memory" in told[0]["message"]["text"]
    assert memory_limit(home.runs / run.id) == 10**6 // 2
    finish(home, waiting, keeper)
    journal = (home.state / "journal").read_text().splitlines()
    assert journal == [
        f"begin {run.id}",
        f"begin {run.id}",
        f"end {run.id}",
        f"begin {waiting.id}",
        f"end {waiting.id}",
    ]


@pytest.mark.skipif(memory_kills() is None, reason="the kernel does not count")
def test_a_second_kill_for_memory_is_the_end(home: Home) -> None:
    run = start(home, steps=8, die="memory", at=3, always=True)
    dead = finish(home, run)
    assert dead.error is not None
    assert (dead.status, dead.error.code) == ("failed", "out_of_memory")
    assert dead.resumable
    assert [event["type"] for event in actions.run_events(home, run.id)[0]].count("retry") == 1


def test_a_worker_that_dies_while_nobody_looks_is_explained_later(home: Home) -> None:
    run = start(home, steps=500, sleep=0.02)
    first = helpers.server(home)
    until(lambda: actions.get_run(home, run.id).step >= 2)
    kill(first)
    worker = process_of(home.runs / run.id)
    assert worker is not None
    os.kill(worker["pid"], signal.SIGKILL)
    dead = finish(home, run, timeout=30)
    assert dead.status == "failed"
    assert dead.error is not None
    assert dead.error.code in ("vanished", "killed")
    assert dead.seconds is not None
    assert dead.seconds < 10


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("segv", "crashed", "crashed at step 2: SIGSEGV"),
        ("error", "crashed", "the sky fell"),
        ("full", "no_disk_space", "The disk is full"),
        ("exit", "crashed", "exit code 3"),
    ],
)
def test_every_death_has_its_sentence(home: Home, how: str, code: str, words: str) -> None:
    dead = finish(home, start(home, die=how, at=2))
    assert dead.error is not None
    assert (dead.status, dead.error.code) == ("failed", code)
    assert words in dead.error.message
    assert dead.error.remedy


def test_stopping_keeps_what_was_asked_for(home: Home) -> None:
    run = start(home, steps=500, sleep=0.02)
    keeper = supervisor(home)
    until(lambda: actions.get_run(home, run.id).step >= 2, keeper.tick)
    assert actions.stop_run(home, run.id, "best").status in ("stopping", "stopped")
    stopped = finish(home, run, keeper)
    assert (stopped.status, stopped.output) == ("stopped", str(home.runs / run.id / "adapter"))
    last = actions.run_events(home, run.id)[0][-1]
    assert (last["type"], last["kept"]) == ("stopped", "best")
    with pytest.raises(AfinaError) as caught:
        actions.stop_run(home, run.id)
    assert (caught.value.code, caught.value.kind) == ("run_ended", "conflict")


def test_a_worker_deaf_to_requests_is_ended_by_signals(home: Home) -> None:
    run = start(home, steps=1, sleep=60, deaf=True)
    keeper = supervisor(home, stop_grace=0.3)
    until(lambda: living(home.runs / run.id) and actions.get_run(home, run.id).total_steps, keeper.tick)
    actions.stop_run(home, run.id)
    stopped = finish(home, run, keeper)
    assert (stopped.status, stopped.output) == ("stopped", None)
    assert living(home.runs / run.id) is None


def test_a_waiting_run_is_taken_out_of_the_queue_at_once(home: Home) -> None:
    first, second = start(home), start(home)
    assert actions.stop_run(home, second.id).status == "stopped"
    assert actions.get_run(home, first.id).queue_position == 1
    assert finish(home, first).status == "succeeded"
    assert actions.get_run(home, second.id).status == "stopped"


def test_a_start_that_was_cut_short_is_made_again(home: Home) -> None:
    """A supervisor killed after it chose a run and before the worker was there."""
    run = start(home)
    with index(home) as session:
        assert rows.change(session, run.id, ["queued"], status="starting", started=time.time() - 60)
    assert finish(home, run).status == "succeeded"


def test_a_worker_that_nobody_saw_start_is_adopted(home: Home) -> None:
    """A supervisor killed right after it started the worker: the worker says itself who it is."""
    run = start(home, steps=20, sleep=0.02, slow=0.5)
    first = supervisor(home)
    first.tick()
    (home.runs / run.id / "process.json").unlink()
    second = supervisor(home)
    second.tick()
    assert actions.get_run(home, run.id).status == "starting"
    done = finish(home, run, second)
    assert done.status == "succeeded"
    assert steps(home, run) == list(range(1, 21))


def test_a_number_used_again_by_another_process_is_not_taken_for_the_worker(home: Home) -> None:
    run = start(home, die="kill", at=1)
    finish(home, run)
    folder = home.runs / run.id
    record = {"pid": os.getpid(), "started": psutil.Process().create_time() - 100}
    (folder / "process.json").write_text(__import__("json").dumps(record))
    assert living(folder) is None


def test_the_index_is_made_again_from_the_folders_even_in_the_middle_of_a_run(home: Home) -> None:
    finished = finish(home, start(home, "finished"))
    run = start(home, "computing", steps=80, sleep=0.02)
    first = start(home, "b waits first")
    second = start(home, "a waits second")
    keeper = supervisor(home)
    until(lambda: actions.get_run(home, run.id).step >= 2, keeper.tick)
    database.close_all()
    for path in home.root.glob("afina.db*"):
        path.unlink()
    listed = {info.name: info for info in actions.list_runs(home)}
    assert listed["finished"].model_dump() == finished.model_dump()
    assert listed["computing"].status == "running"
    assert [listed[name].queue_position for name in (first.name, second.name)] == [1, 2]
    assert finish(home, second, timeout=30).status == "succeeded"
    assert actions.get_run(home, run.id).status == "succeeded"


def test_a_worker_that_cannot_be_started_fails_with_the_reason(home: Home) -> None:
    run = start(home)
    (home.runs / run.id / "console.log").mkdir()
    failed = finish(home, run)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "could_not_start")
    assert "directory" in failed.error.message.lower()
