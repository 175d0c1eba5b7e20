"""The models that are loaded for conversation: at most a few at a time, the least recently used one making room,
unloaded after a while without a question.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.chat.process import ChatProcess, Listener
from afina.chat.protocol import Precision, Question
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say


@dataclass(frozen=True)
class Loadable:
    """A model as it is loaded: a folder, the adapters to merge into it in order, how prompts are written for it, and the
    number format of its weights."""

    model: Path
    adapters: tuple[Path, ...] = ()
    chat_template: str = "auto"
    precision: Precision = "auto"


@dataclass(frozen=True)
class Loaded:
    """What is in memory now."""

    model: Loadable
    state: str
    pid: int
    busy: bool


@dataclass(frozen=True)
class Ticket:
    """A question that is being answered."""

    process: ChatProcess
    number: int

    def cancel(self) -> None:
        """Stop the answer; the listener still hears the end of it."""
        self.process.cancel(self.number)


class ChatPool:
    """Safe to call from any thread. `most`: models at a time; `idle_seconds`: `sweep` unloads those older."""

    def __init__(self, most: int = 2, idle_seconds: float = 600.0) -> None:
        self.most = most
        self.idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._processes: dict[tuple[Any, ...], tuple[Loadable, ChatProcess]] = {}

    def ask(self, model: Loadable, question: Question, listener: Listener) -> Ticket:
        """Put a question to a model, loading it first when it is not.

        `listener` is called from another thread with `{"loading": true}`, `{"ready": …}`, `{"text": …}` and at last with
        `{"done": true, …}` or `{"error": problem}`. Raises AfinaError `chat_full` when every place is taken by a model that
        is answering.
        """
        key = _key(model)
        closing: list[ChatProcess] = []
        with self._lock:
            known = self._processes.get(key)
            if known is not None and known[1].state != "ended":
                process = known[1]
            else:
                self._processes.pop(key, None)
                closing = self._make_room()
                process = ChatProcess(model.model, model.adapters, model.chat_template, model.precision)
                self._processes[key] = (model, process)
            if process.state == "loading":
                listener({"loading": True})
            number = process.ask(question, listener)
        for other in closing:
            other.close()
        return Ticket(process, number)

    def answer(self, model: Loadable, question: Question) -> Iterator[dict[str, Any]]:
        """The pieces of an answer, one after the other; closing the iterator stops the answer."""
        pieces: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        ticket = self.ask(model, question, pieces.put)
        try:
            while True:
                piece = pieces.get()
                yield piece
                if "done" in piece or "error" in piece:
                    return
        finally:
            ticket.cancel()

    def loaded(self) -> list[Loaded]:
        """The models in memory."""
        with self._lock:
            return [
                Loaded(model, process.state, process.pid, process.busy)
                for model, process in self._processes.values()
                if process.state != "ended"
            ]

    def unload(self, folder: Path) -> None:
        """Let go of every model that reads from `folder` (it is about to be deleted)."""
        self._close(lambda model, _: any(path.is_relative_to(folder) for path in (model.model, *model.adapters)))

    def sweep(self) -> None:
        """Let go of what has ended or has had nothing to do for a while. To be called now and then."""
        oldest = time.monotonic() - self.idle_seconds
        self._close(lambda model, process: process.state == "ended" or (not process.busy and process.used < oldest))

    def close(self) -> None:
        """Let go of everything."""
        self._close(lambda model, process: True)

    def _close(self, chosen: Callable[[Loadable, ChatProcess], bool]) -> None:
        with self._lock:
            keys = [key for key, (model, process) in self._processes.items() if chosen(model, process)]
            processes = [self._processes.pop(key)[1] for key in keys]
        for process in processes:
            process.close()

    def _make_room(self) -> list[ChatProcess]:
        """Take the least recently used idle models out until one more fits; they are closed by the caller."""
        gone = [key for key, (_, process) in self._processes.items() if process.state == "ended"]
        out = [self._processes.pop(key)[1] for key in gone]
        while len(self._processes) >= self.most:
            idle = [(process.used, key) for key, (_, process) in self._processes.items() if not process.busy]
            if not idle:
                raise AfinaError(
                    Problem(
                        "chat_full",
                        say(N_("{count} models are answering already, and no more fit."), count=self.most),
                        say(N_("Wait for an answer to end, or stop one.")),
                    ),
                    "conflict",
                )
            out.append(self._processes.pop(min(idle)[1])[1])
        return out


def _key(model: Loadable) -> tuple[Any, ...]:
    """Same files, same process: a model that was deleted and added again under its name is loaded anew."""
    return (model, *(_stamp(folder) for folder in (model.model, *model.adapters)))


def _stamp(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
