"""One loaded model: its process, its pipes, and the questions it is answering.

A thread reads what the worker says and hands each piece to whoever asked. The worker ends by itself when its input
closes, so it outlives neither `close` nor a SIGKILL of this process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from afina.chat.protocol import Question, problem_as_json, problem_from_json
from afina.core.compute import compute_environment
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say

Listener = Callable[[dict[str, Any]], None]
State = Literal["loading", "ready", "ended"]
GRACE = 3.0
"""Seconds a worker gets to end by itself."""


class ChatProcess:
    """A worker with one model. `state` tells how far it is; `used` is when it last had work (monotonic seconds)."""

    def __init__(self, model: Path, adapters: Sequence[Path], chat_template: str, precision: str = "auto") -> None:
        self.state: State = "loading"
        self.used = time.monotonic()
        self._numbers = itertools.count(1)
        self._open: dict[int, Listener] = {}
        self._lock = threading.Lock()
        self._failure: dict[str, Any] | None = None
        self._closing = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = [sys.executable, "-m", "afina.chat.worker", str(model), "--chat-template", chat_template]
        command += ["--precision", precision]
        for adapter in adapters:
            command += ["--adapter", str(adapter)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=compute_environment(),
            start_new_session=True,
        )
        threading.Thread(target=self._read, name=f"chat {model.name}", daemon=True).start()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def busy(self) -> bool:
        """Whether it has questions to answer."""
        return bool(self._open)

    def ask(self, question: Question, listener: Listener) -> int:
        """Put a question; `listener` gets every piece of the answer, from another thread, the last one with `done` or
        `error`. Returns the number to cancel it by."""
        with self._lock:
            number = next(self._numbers)
            self.used = time.monotonic()
            self._open[number] = listener
            ended = self.state == "ended"
        if ended or not self._send({"ask": number, **question.as_json()}):
            self._finish(number, {"error": self._why()})
        return number

    def cancel(self, number: int) -> None:
        """Stop an answer; its listener still hears the end of it."""
        if number in self._open:
            self._send({"cancel": number})

    def close(self) -> None:
        """End the worker, by force when it does not end by itself, and wait for it."""
        self._closing = True
        self._close_input()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close_input(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def _send(self, message: dict[str, Any]) -> bool:
        stdin = self._process.stdin
        if stdin is None:
            return False
        try:
            with self._lock:
                stdin.write(json.dumps(message).encode() + b"\n")
                stdin.flush()
        except (BrokenPipeError, ValueError):  # it died, or was closed meanwhile
            return False
        return True

    def _read(self) -> None:
        """Hand out what the worker says until it ends; then tell those who still wait why it ended."""
        stdout = self._process.stdout
        if stdout is None:
            return
        for line in stdout:
            if line.endswith(b"\n"):  # a killed worker may leave half a line
                self._hear(json.loads(line))
        self._process.wait()
        with self._lock:
            self.state = "ended"
            waiting = list(self._open)
        why = self._why()
        for number in waiting:
            self._finish(number, {"error": why})
        self._close_input()
        stdout.close()
        self._errors.close()

    def _hear(self, message: dict[str, Any]) -> None:
        self.used = time.monotonic()
        number = message.pop("answer", None)
        if number is not None:
            if "done" in message or "error" in message:
                self._finish(number, message)
            elif number in self._open:
                self._open[number](message)
            return
        if "failed" in message:
            self._failure = message["failed"]
        if "ready" in message:
            self.state = "ready"
        for listener in list(self._open.values()):
            listener(message)

    def _finish(self, number: int, message: dict[str, Any]) -> None:
        with self._lock:
            listener = self._open.pop(number, None)
            self.used = time.monotonic()
        if listener is not None:
            listener(message)

    def _why(self) -> dict[str, Any]:
        """Why there is no answer, as a problem."""
        if self._failure is not None:
            return self._failure
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            code = None
        if self._closing:
            error = Problem("chat_unloaded", say(N_("The model was unloaded.")), say(N_("Ask again to load it.")))
        elif os.name == "posix" and code == -signal.SIGKILL:
            error = Problem(
                "chat_killed",
                say(N_("The system ended the model's process, most likely because the memory was full.")),
                say(N_("Close other programs, wait for the run in progress, or choose a smaller model.")),
            )
        else:
            error = Problem(
                "chat_died",
                say(
                    N_("The model's process ended unexpectedly (exit code {code}). {detail}"),
                    code=str(code),
                    detail=self._tail(),
                ),
                say(N_("Ask again to load it once more.")),
            )
        return problem_as_json(AfinaError(error, "failed"))

    def _tail(self) -> str:
        """The last line the worker wrote to its error output."""
        if self._errors.closed:
            return ""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 2000))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


def failure(message: dict[str, Any]) -> AfinaError | None:
    """The error in a piece of an answer, if it is one."""
    return problem_from_json(message["error"]) if "error" in message else None
