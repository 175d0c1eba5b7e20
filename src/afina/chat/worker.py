"""The process that holds one model: `python -m afina.chat.worker FOLDER [--adapter FOLDER]… [--chat-template NAME]
[--precision NAME]`.

Started by name, never imported. Reads questions from its input, one JSON object a line, and writes the answers as they
come (`protocol.py`). Ends when its input closes, at once, whatever it is doing.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from afina.chat.protocol import problem_as_json
from afina.core import quantization
from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.data.examples import Turn
from afina.data.template import ChatTokenizer
from afina.engine import lean
from afina.engine.device import choose_device, is_out_of_memory
from afina.engine.generate import Generator


class Worker:
    """One model and the questions put to it, answered one after the other."""

    def __init__(self, out: int) -> None:
        self._out = os.fdopen(out, "wb", buffering=0)
        self._questions: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled: set[int] = set()

    def run(self, model: Path, adapters: list[Path], chat_template: str, precision: str) -> int:
        """Load, then answer until the input closes. Exit code 1 when the model cannot be loaded."""
        threading.Thread(target=self._listen, daemon=True).start()
        started = time.monotonic()
        try:
            tokenizer = ChatTokenizer.load(model, chat_template)
            generator = Generator.load(model, adapters, chat_template=chat_template, precision=precision)
        except AfinaError as error:
            self._say({"failed": problem_as_json(error)})
            return 1
        except Exception as error:  # noqa: BLE001 - whatever a broken file makes a library raise, it is told to the asker
            self._say({"failed": problem_as_json(_unloadable(model, error))})
            return 1
        self._say({"ready": True, "seconds": round(time.monotonic() - started, 2), "precision": generator.precision})
        context = context_length(model)
        while True:
            question = self._questions.get()
            number = question["ask"]
            try:
                self._answer(number, question, tokenizer, generator, context)
            except AfinaError as error:
                self._say({"answer": number, "error": problem_as_json(error)})
            self._cancelled.discard(number)

    def _answer(
        self, number: int, question: dict[str, Any], tokenizer: ChatTokenizer, generator: Generator, context: int | None
    ) -> None:
        turns = [Turn(message["role"], message["content"]) for message in question["messages"]]
        prompt = tokenizer.prompt(turns)
        room = context - len(prompt) if context else question["max_tokens"]
        if room < 1:
            raise AfinaError(_too_long(len(prompt), context or 0))
        if number in self._cancelled:
            self._done(number, "cancelled", 0, len(prompt), 0.0, generator)
            return
        started = time.monotonic()
        pieces = generator.stream(
            prompt,
            max_tokens=min(question["max_tokens"], room),
            temperature=question["temperature"],
            top_p=question["top_p"],
            seed=question["seed"],
            stop=lambda: number in self._cancelled,
        )
        for piece in pieces:
            self._say({"answer": number, "text": piece})
        rate = generator.tokens / max(time.monotonic() - started, 1e-6)
        self._done(number, generator.stop_reason, generator.tokens, len(prompt), rate, generator)

    def _done(self, number: int, reason: str, tokens: int, prompt: int, rate: float, generator: Generator) -> None:
        self._say(
            {
                "answer": number,
                "done": True,
                "stop_reason": reason,
                "tokens": tokens,
                "prompt_tokens": prompt,
                "tokens_per_second": round(rate, 2),
                "precision": generator.precision,
                "loss_rise": generator.loss_rise,
            }
        )

    def _listen(self) -> None:
        """Take questions and cancellations; the end of the input is the end of the process."""
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "cancel" in message:
                self._cancelled.add(message["cancel"])
            else:
                self._questions.put(message)
        os._exit(0)

    def _say(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")


def context_length(model: Path) -> int | None:
    """How many tokens the model can attend to, None when its configuration does not say."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    length = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    return length if isinstance(length, int) else None


def _unloadable(model: Path, error: Exception) -> AfinaError:
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if is_out_of_memory(error):
        return AfinaError(
            Problem(
                "out_of_memory",
                say(N_("There is not enough memory to load “{model}”."), model=model.name),
                say(N_("Close other programs, wait for the run in progress, or choose a smaller model.")),
            ),
            "failed",
        )
    return AfinaError(
        Problem(
            "model_unloadable",
            say(N_("“{model}” cannot be loaded: {detail}"), model=model.name, detail=detail),
            say(N_("Add the model again.")),
        ),
        "failed",
    )


def _too_long(tokens: int, context: int) -> Problem:
    return Problem(
        "prompt_too_long",
        say(
            N_("The conversation is {tokens} tokens long; the model reads at most {context}."),
            tokens=tokens,
            context=context,
        ),
        say(N_("Begin a new conversation, or shorten this one.")),
        field="messages",
    )


def main() -> int:
    """Read the command line. What libraries print goes to the error output; the real output is for answers only."""
    parser = argparse.ArgumentParser(prog="afina.chat.worker")
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapter", type=Path, action="append", default=[])
    parser.add_argument("--chat-template", default="auto")
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    quantization.leave_out()  # Chat quantises by itself (`Generator`)
    out = os.dup(1)
    os.dup2(2, 1)
    lean.leave_out(choose_device("auto"))
    return Worker(out).run(arguments.model, arguments.adapter, arguments.chat_template, arguments.precision)


if __name__ == "__main__":
    try:
        code = main()
    except Exception:  # noqa: BLE001 - the edge of the process: the last line is what the asker is told
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # the thread that listens is still reading, and an orderly end would wait for it
