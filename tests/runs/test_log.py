"""The event log: whole lines only, whatever happens to its writer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afina.core.events import Phase, Step, Warn
from afina.core.messages import say
from afina.runs.log import EventLog, read_console


def step(number: int, loss: float = 1.0) -> Step:
    return Step(number, 10, 0.1, loss, 1e-3, 1.0, 100, 50.0, 10, 1.0)


def test_events_come_back_numbered_and_stamped(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(Phase("starting"))
    log.append(Warn("odd", say("It is {what}.", what="odd — á")))
    events, offset = log.read()
    assert [event["seq"] for event in events] == [0, 1]
    assert events[1]["message"]["text"] == "It is odd — á."
    assert events[0]["time"] <= events[1]["time"]
    assert offset == log.size()
    EventLog(tmp_path).append(step(1))
    events, _ = log.read(offset)
    assert [(event["seq"], event["type"]) for event in events] == [(2, "step")]


def test_a_half_written_line_is_invisible_and_dropped_by_the_next_writer(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(step(1))
    offset = log.size()
    with log.path.open("ab") as file:
        file.write(b'{"seq": 1, "type": "st')
    assert log.read(offset) == ([], offset)
    EventLog(tmp_path).append(step(2))
    events, _ = EventLog(tmp_path).read(offset)
    assert [event["seq"] for event in events] == [1]
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


def test_reading_goes_on_in_pieces_and_never_past_the_end(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for number in range(1, 50):
        log.append(step(number))
    seen, offset = [], 0
    while True:
        events, after = log.read(offset, limit=300)
        seen += [event["step"] for event in events]
        if after == offset:
            break
        offset = after
    assert seen == list(range(1, 50))
    assert log.read(10**9) == ([], 10**9)
    assert EventLog(tmp_path / "nothing").read(5) == ([], 0)


def test_a_loss_that_is_not_finite_is_still_json(tmp_path: Path) -> None:
    EventLog(tmp_path).append(step(1, float("nan")))
    assert EventLog(tmp_path).read()[0][0]["loss"] is None


@given(st.text(alphabet="aá\nñ€😀", max_size=60), st.integers(1, 12))
def test_the_console_in_pieces_is_the_console(tmp_path_factory: pytest.TempPathFactory, text: str, limit: int) -> None:
    folder = tmp_path_factory.mktemp("console")
    (folder / "console.log").write_bytes(text.encode())
    read, offset = "", 0
    for _ in range(200):
        piece, after = read_console(folder, offset, max(4, limit))
        read += piece
        if after == offset:
            break
        offset = after
    assert read == text


def test_the_end_of_the_console_begins_with_a_whole_line(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_text("one\ntwo\nthree\n")
    assert read_console(tmp_path, -8) == ("three\n", 14)
    assert read_console(tmp_path, -100) == ("one\ntwo\nthree\n", 14)
    assert read_console(tmp_path / "none") == ("", 0)
