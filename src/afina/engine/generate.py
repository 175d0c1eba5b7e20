"""Answering: a model, its adapters merged, writing token by token with a cache of what it has read.

Pieces of text are handed out as soon as they are whole characters; special tokens never appear in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from afina.data.template import ChatTokenizer
from afina.engine import device as devices
from afina.engine import model as models
from afina.engine.folders import parameters_of

StopReason = Literal["stop", "length", "cancelled"]
UNFINISHED = "\ufffd"
"""What a decoder shows for bytes that are not yet a whole character."""


def _never() -> bool:
    return False


class Generator:
    """A model that answers. After a stream: `stop_reason`, and `tokens` written; always: `precision`."""

    def __init__(self, model: Any, chat: ChatTokenizer) -> None:
        self._model = model.eval()
        self._chat = chat
        self._device: torch.device = next(model.parameters()).device
        self.precision = str(model.dtype).removeprefix("torch.")
        self.stop_reason: StopReason = "stop"
        self.tokens = 0

    @classmethod
    def load(
        cls,
        model_folder: Path,
        adapters: Sequence[Path] = (),
        *,
        chat_template: str = "auto",
        device: str = "auto",
        threads: int | None = None,
    ) -> Generator:
        """Load the model in whichever of float32 and bfloat16 writes faster here, `adapters` merged in their order.

        chat_template: as it was trained with; it decides which tokens end an answer. Raises AfinaError `broken_model`,
        `adapter_mismatch`, `no_tokenizer`, `no_such_device`.
        """
        chat = ChatTokenizer.load(model_folder, chat_template)
        devices.use_threads(threads)
        where = devices.choose_device(device)
        dtype, _ = devices.fastest_dtype(where, models.shapes(models.text_config(model_folder)), rows=1)
        if dtype is torch.float32 and 4 * parameters_of(model_folder) > 0.8 * devices.free_memory(where):
            dtype = torch.bfloat16  # slower, but it fits
        return cls(models.load(model_folder, dtype, where, adapters), chat)

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Callable[[], bool] = _never,
    ) -> Iterator[str]:
        """Write an answer to `prompt_ids`, piece by piece. `stop` is asked after every token.

        temperature 0 takes the likeliest token always; top_p samples among the likeliest tokens that together have
        that probability (Holtzman et al. 2020); the same `seed` gives the same answer.
        """
        self.stop_reason, self.tokens = "length", 0
        random = torch.Generator(self._device)
        random.manual_seed(seed) if seed is not None else random.seed()
        text = _Text(self._chat)
        ids = torch.tensor([list(prompt_ids)], device=self._device)
        cache = None
        for _ in range(max_tokens):
            with torch.inference_mode():
                output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = output.past_key_values
                token = _choose(output.logits[0, -1].float(), temperature, top_p, random)
            if token in self._chat.stop_ids:
                self.stop_reason = "stop"
                break
            self.tokens += 1
            if piece := text.add(token):
                yield piece
            if stop():
                self.stop_reason = "cancelled"
                break
            ids = torch.tensor([[token]], device=self._device)
        if piece := text.rest():
            yield piece


def _choose(scores: Tensor, temperature: float, top_p: float, random: torch.Generator) -> int:
    """The next token from the scores (V,) of all tokens."""
    if temperature <= 0:
        return int(scores.argmax())
    likely, order = torch.softmax(scores / temperature, dim=0).sort(descending=True)
    if top_p < 1:
        before = likely.cumsum(dim=0) - likely
        likely = likely.masked_fill(before >= max(top_p, 1e-6), 0.0)
    return int(order[torch.multinomial(likely, 1, generator=random)])


class _Text:
    """Token ids → text, never half a character: a token may be a part of one, and decoders join words by context."""

    def __init__(self, chat: ChatTokenizer) -> None:
        self._chat = chat
        self._ids: list[int] = []
        self._start = 0  # ids before this one are shown and only give context
        self._shown = 0

    def add(self, token: int) -> str:
        """The new text that is complete, "" while a character is not."""
        self._ids.append(token)
        return self._advance(final=False)

    def rest(self) -> str:
        """What is left at the end, an unfinished character included."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = self._chat.decode(self._ids[self._start : self._shown])
        after = self._chat.decode(self._ids[self._start :])
        if not final and after.endswith(UNFINISHED):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]
