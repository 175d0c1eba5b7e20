"""Answering: a model, its adapters merged, writing token by token with a cache of what it has read.

Pieces of text are handed out as soon as they are whole characters; special tokens never appear in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from afina.data.examples import Example
from afina.data.template import ChatTokenizer
from afina.engine import device as devices
from afina.engine import model as models
from afina.engine.cached import Cached
from afina.engine.decoder import Decoder
from afina.engine.folders import parameters_of
from afina.engine.speaker import Form, Speaker, Stored, stored_head

StopReason = Literal["stop", "length", "cancelled"]
PROMPT_ROWS = 256
WEIGHTS_TIMED = 40_000_000
UNFINISHED = "\ufffd"
"""What a decoder shows for bytes that are not yet a whole character."""


def _never() -> bool:
    return False


HELD_OUT = (
    "Water is one of the most important things on Earth. People, animals and plants all need water to live. Rain falls from "
    "the clouds, runs into rivers and lakes, and in the end flows back to the sea. When the sun warms the sea, some of the "
    "water rises into the air and becomes clouds again. This is called the water cycle.",
    "Question: What is the capital of France?\nAnswer: The capital of France is Paris.\n\nQuestion: How many days are there "
    "in a week?\nAnswer: There are seven days in a week: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."
    "\n\nQuestion: What is three times four?\nAnswer: Three times four is twelve.",
    "Dear Sir or Madam, I am writing to ask about the position of teacher at your school. I have worked with children for "
    "five years and I speak three languages. Please find my letter of application and my certificates attached. I look "
    "forward to hearing from you. Yours faithfully, Maria",
    "Os pescadores saem de casa antes do nascer do sol. Ao meio-dia vendem o peixe no mercado e, com o dinheiro que ganham, "
    "compram arroz, óleo e livros para a escola. À tarde, as crianças jogam à bola na praia e os mais velhos falam do tempo.",
    "Iha loron-sábadu ema barak ba merkadu; sira sosa modo, ai-fuan no na’an, depois fila ba uma.",
)
"""Texts no model was trained on, easy ones too, by which formats of weights are judged: what a model cannot guess anyway says
little about its weights."""
MOST_RISE = 0.01
"""A format whose loss on HELD_OUT is higher by this share than that of the weights as they are is not taken."""


class Generator:
    """A model that answers. After a stream: `stop_reason`, and `tokens` written.

    precision: of the weights in use; loss_rise: what that costs, as a share of the loss on HELD_OUT (None: not measured).
    """

    def __init__(
        self, voice: Speaker | Any, chat: ChatTokenizer, precision: str, loss_rise: float | None = None
    ) -> None:
        self._voice = voice if isinstance(voice, Speaker) else Cached(voice)
        self._chat = chat
        self.precision = precision
        self.loss_rise = loss_rise
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
        precision: str = "auto",
    ) -> Generator:
        """Load the model with `adapters` merged in their order.

        precision: "float32", "bfloat16", "int8", or "auto": the fastest of them here whose loss on a held-out text rises
        by less than 1 %. int8 is for models that Afina computes itself. chat_template: as it was trained with; it decides
        which tokens end an answer. Raises AfinaError `broken_model`, `adapter_mismatch`, `no_tokenizer`,
        `no_such_device`.
        """
        chat = ChatTokenizer.load(model_folder, chat_template)
        devices.use_threads(threads)
        where = devices.choose_device(device)
        dtype = torch.float32
        if 4 * parameters_of(model_folder) > 0.6 * devices.free_memory(where):
            dtype = torch.bfloat16  # slower, but it fits
        if not devices.computes_layers(where):
            return cls._by_transformers(model_folder, adapters, chat, where, precision)
        model = models.load(model_folder, dtype, where, adapters).eval()
        try:
            decoder = Decoder(model)
            return cls._by_speaker(model, decoder, chat, precision)
        except ValueError:
            return cls._by_transformers(model_folder, adapters, chat, where, precision, model)

    @classmethod
    def _by_speaker(cls, model: Any, decoder: Decoder, chat: ChatTokenizer, precision: str) -> Generator:
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        weight, bias = head.weight, head.bias
        changes = models.score_changes(config)
        texts = [chat.encode(Example(text=text)).ids[:256] for text in HELD_OUT]
        plain = Speaker(decoder, stored_head(weight, bias, None, *changes))
        before = _loss(plain, texts)
        forms: list[Form] = fastest_forms(models.shapes(config), int(weight.shape[0])) if precision == "auto" else []
        layers = decoder.layers
        for form in forms or [_form(precision)]:
            speaker = Speaker(decoder, stored_head(weight, bias, form, *changes), form, _between(form, config))
            rise = _loss(speaker, texts) / before - 1.0
            if rise < MOST_RISE or not forms or form == forms[-1]:
                break
            decoder.layers = layers
        return cls(speaker, chat, form, max(0.0, rise))

    @classmethod
    def _by_transformers(
        cls, folder: Path, adapters: Sequence[Path], chat: ChatTokenizer, where: torch.device, precision: str,
        model: Any = None,
    ) -> Generator:  # fmt: skip
        """With transformers' layers and cache: on graphics cards, and for families that Afina does not compute itself."""
        if precision in devices.DTYPES:
            dtype = devices.DTYPES[precision]
        else:
            dtype, _ = devices.fastest_dtype(where, models.shapes(models.text_config(folder)), rows=1)
        if dtype is torch.float32 and 4 * parameters_of(folder) > 0.8 * devices.free_memory(where):
            dtype = torch.bfloat16
        model = models.load(folder, dtype, where, adapters) if model is None else model.to(dtype)
        return cls(model.eval(), chat, str(dtype).removeprefix("torch."))

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
        random = torch.Generator(self._voice.device)
        random.manual_seed(seed) if seed is not None else random.seed()
        text = _Text(self._chat)
        scores = self._voice.begin([list(prompt_ids)])
        while self.tokens < max_tokens:
            token = _choose(scores[0], temperature, top_p, random)
            if token in self._chat.stop_ids:
                self.stop_reason = "stop"
                break
            self.tokens += 1
            if piece := text.add(token):
                yield piece
            if stop():
                self.stop_reason = "cancelled"
                break
            if self.tokens < max_tokens:
                scores = self._voice.next([token])
        if piece := text.rest():
            yield piece


def _loss(speaker: Speaker, texts: Sequence[Sequence[int]]) -> float:
    """Summed over all their tokens but the first of each."""
    return sum(speaker.loss(ids) * (len(ids) - 1) for ids in texts)


def _between(form: Form, config: Any) -> torch.dtype:
    """The format of what lies between weights in `form`: for int8 the one in which a prompt is read fastest."""
    if form == "int8":
        return devices.fastest_dtype(torch.device("cpu"), models.shapes(config), rows=PROMPT_ROWS)[0]
    return devices.DTYPES[form]


def _form(name: str) -> Form:
    return "int8" if name == "int8" else "bfloat16" if name == "bfloat16" else "float32"


def fastest_forms(shapes: Sequence[tuple[int, int]], vocabulary: int) -> list[Form]:
    """The formats of weights, the one first whose products with a single vector are fastest here.

    Timed on more weights than a cache holds, for reading them is what takes the time. The last one is float32 or whatever
    is faster, so there is always one that changes nothing or little.
    """
    layer = [*shapes, (min(vocabulary, 8192), shapes[0][1])]
    often = max(1, WEIGHTS_TIMED // sum(outputs * inputs for outputs, inputs in layer))
    seconds: dict[Form, float] = {}
    for form in ("float32", "bfloat16", "int8"):
        stored = [Stored(torch.ones(outputs, inputs), None, form) for outputs, inputs in layer * often]
        vectors = [
            torch.ones(1, inputs, dtype=torch.float32 if form == "float32" else torch.bfloat16)
            for _, inputs in layer * often
        ]

        def products(stored: list[Stored] = stored, vectors: list[Tensor] = vectors) -> None:
            for matrix, vector in zip(stored, vectors, strict=True):
                matrix.forward(vector)

        seconds[form] = devices.time_of(products, torch.device("cpu"))
    whole: Form = "bfloat16" if seconds["bfloat16"] < seconds["float32"] else "float32"
    return ["int8", whole] if seconds["int8"] < seconds[whole] else [whole]


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
