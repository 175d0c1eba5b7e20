"""The only place where a conversation becomes token ids and a loss mask. No torch.

The whole conversation is written out with the model's chat template and tokenised once; which tokens are learned
follows from the character positions of the answers in that text. So the model reads in training exactly what it will
read in a chat, and no token is ever made from half of a seam between prompt and answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import tokenizers
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer

from afina.core.errors import AfinaError, Problem
from afina.core.messages import N_, say
from afina.data.examples import Example, Turn
from afina.data.faults import Fault
from afina.data.jinja import BUILT_IN, Template, built_in, find_template
from afina.data.revision import TOKENS
from afina.data.turns import Said, forms, joined

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

State = Literal["learned", "read", "cut"]
Span = tuple[int, int]
MARK = "\u2042answer\u2042"
"""Stands in for an answer while its place is looked up; no template has reason to change or drop it."""

TOKENIZER = "tokenizer.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example; `mask[i]` is True where token i is learned (predicted from the tokens before it).

    cut: tokens past the maximum length, lost; cut_answer: those of them that would have been learned.
    """

    ids: list[int]
    mask: list[bool]
    cut: int = 0
    cut_answer: int = 0

    @property
    def learned(self) -> int:
        """How many tokens carry a loss."""
        return sum(self.mask)


@dataclass(frozen=True)
class Counted:
    """Tokens of one example: in all, learned, past the maximum length, and those of them that would have been learned."""

    tokens: int
    answers: int
    cut: int = 0
    cut_answers: int = 0


@dataclass(frozen=True)
class Piece:
    """One token as people see it: its characters ("" where it is a part of a character already shown) and its fate."""

    text: str
    state: State


@dataclass(frozen=True)
class _Written:
    """An example as the text that is tokenised; learned are the `spans` of it, or with `rest` all but them."""

    text: str
    spans: list[Span]
    rest: bool = False


@dataclass(frozen=True)
class _Whole:
    """An example before it is cut: ids, mask and the characters each token covers."""

    text: str
    ids: list[int]
    mask: list[bool]
    offsets: list[Span]


def has_template(folder: Path) -> bool | None:
    """Whether the model in `folder` brings a chat template; None where it has no tokenizer to ask. Loads nothing large."""
    if not (folder / "tokenizer.json").is_file():
        return None
    return find_template(folder, _json(folder / "tokenizer_config.json")) is not None


class ChatTokenizer:
    """The tokenizer and chat template of one model.

    has_template: the model brings a template of its own; source: the template in use, as Hugging Face's tools read it;
    stop_ids: the tokens that end an answer; origin: what `load` was given, so that another process can load the same.
    """

    def __init__(self, tokenizer: Tokenizer, source: str, tokens: dict[str, str], **known: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._adds_bos = bool(known.get("adds_bos"))
        self.has_template: bool = bool(known.get("has_template"))
        self.source = source
        self.origin: tuple[Path, str, datetime | None] | None = None
        self._template = Template(source, tokens, known.get("now"))
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        self._marks = {text for text in added | {tokens.get("eos_token", "")} if text.strip()} - {
            tokens.get("bos_token")
        }
        self._mark_lengths = sorted({len(text) for text in self._marks}, reverse=True)
        self.stop_ids: set[int] = set(known.get("stop_ids", ()))
        self.stop_ids |= self._stops_of_template()

    @classmethod
    def load(cls, folder: Path, chat_template: str = "auto", now: datetime | None = None) -> ChatTokenizer:
        """Read tokenizer and template of the model in `folder`.

        chat_template: "auto" (the model's own, ChatML where it has none), "chatml" or "plain". now: the date that
        templates may print; fix it to make a run repeatable. Raises AfinaError `no_tokenizer`, `bad_chat_template`.
        """
        file = folder / TOKENIZER
        if not file.is_file():
            raise AfinaError(_no_tokenizer(folder))
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001  the tokenizers library raises nothing narrower
            raise AfinaError(_no_tokenizer(folder, str(error))) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _json(folder / "tokenizer_config.json")
        tokens = _special_tokens(config, _json(folder / "special_tokens_map.json"))
        own = find_template(folder, config)
        adds_bos = _adds_bos(tokenizer, config, tokens)
        tokenizer.post_processor = None  # it may trim offsets and add tokens; both are done here
        name = chat_template if chat_template in BUILT_IN else "chatml" if own is None else None
        source = built_in(name, _end_of_turn(tokenizer, tokens), adds_bos) if name else own or ""
        stops = _ids(_json(folder / "generation_config.json").get("eos_token_id"))
        stops |= _ids(_json(folder / "config.json").get("eos_token_id"))
        if (eos := tokenizer.token_to_id(tokens.get("eos_token", ""))) is not None:
            stops.add(eos)
        loaded = cls(
            tokenizer, source, tokens, adds_bos=adds_bos, has_template=own is not None, now=now, stop_ids=stops
        )  # fmt: skip
        loaded.origin = (folder, chat_template, now)
        return loaded

    # ------------------------------------------------------------------ what others call

    def fingerprint(self) -> str:
        """Of everything that tokens and masks depend on besides the settings of `encode`: the tokenizer's content, the
        template, the date it may print, and this program's own rules. The same on every start."""
        whole = (self.origin[0] / TOKENIZER).read_bytes() if self.origin else self._tokenizer.to_str().encode()
        facts = [
            *(TOKENS, tokenizers.__version__, jinja2.__version__, hashlib.sha256(whole).hexdigest()),
            *(sorted(self._tokens.items()), self._adds_bos, self.source, self._template.dates()),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def encode(
        self,
        example: Example,
        *,
        max_length: int | None = None,
        train_on: str = "answers",
        system_prompt: str | None = None,
    ) -> Encoded:
        """One example, cut at `max_length` tokens. Of a longer text only the first piece: see `encode_all`."""
        return _cut(self._whole(example, train_on, system_prompt), max_length)

    def encode_all(
        self,
        example: Example,
        *,
        max_length: int | None = None,
        train_on: str = "answers",
        system_prompt: str | None = None,
    ) -> list[Encoded]:
        """As `encode`, but a text longer than `max_length` becomes several pieces and no token of it is lost.

        Each further piece begins with the last token of the one before, as context only: so every token but the very
        first is learned exactly once.
        """
        whole = self._whole(example, train_on, system_prompt)
        if example.text is None or max_length is None or len(whole.ids) <= max_length:
            return [_cut(whole, max_length)]
        stride = max_length - 1
        return [
            Encoded(whole.ids[at : at + max_length], [False, *whole.mask[at + 1 : at + max_length]])
            for at in range(0, len(whole.ids) - 1, stride)
        ]

    def prompt(self, turns: Sequence[Turn], system_prompt: str | None = None) -> list[int]:
        """Token ids of the conversation so far, ending where the assistant's answer begins."""
        messages = joined(turns, system_prompt)
        text = self._render(messages, answer=True)
        return self._ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def count(self, example: Example, *, system_prompt: str | None = None) -> int:
        """Tokens of the whole example, before any cut."""
        return len(self._whole(example, "answers", system_prompt).ids)

    def measure(
        self,
        examples: Sequence[Example],
        max_length: int | None = None,
        train_on: str = "answers",
        system_prompt: str | None = None,
    ) -> list[Counted | Fault]:
        """What `encode` would give of each, as numbers only and much faster; documents are divided, so nothing of them is
        cut. A Fault `template_mismatch` where the template does not take the conversation."""
        results: list[Counted | Fault | _Written] = [self._tried(one, train_on, system_prompt) for one in examples]
        written = [one for one in results if isinstance(one, _Written)]
        encodings = iter(self._tokenizer.encode_batch([one.text for one in written], add_special_tokens=False))
        for index, one in enumerate(results):
            if isinstance(one, _Written):
                limit = max_length if examples[index].text is None else None
                mask = _mask(next(encodings).offsets, one)
                learned = int(mask.sum())
                cut = 0 if limit is None else max(0, len(mask) - limit)
                results[index] = Counted(len(mask), learned, cut, int(mask[limit:].sum()) if cut else 0)
        return [one for one in results if not isinstance(one, _Written)]

    def _tried(self, example: Example, train_on: str, system_prompt: str | None) -> _Written | Fault:
        try:
            return self._as_text(example, train_on, system_prompt)
        except AfinaError as error:
            problem = error.problems[0]
            return Fault("template_mismatch", problem.message, example.row, example.line, problem.field)

    def pieces(
        self,
        example: Example,
        *,
        max_length: int | None = None,
        train_on: str = "answers",
        system_prompt: str | None = None,
    ) -> list[Piece]:
        """The tokens of an example as people see them, each learned, only read, or cut; their texts join to the whole."""
        whole = self._whole(example, train_on, system_prompt)
        limit = len(whole.ids) if max_length is None or example.text is not None else max_length
        shown, at = [], 0
        for index, (_, end) in enumerate(whole.offsets):
            state: State = "cut" if index >= limit else "learned" if whole.mask[index] else "read"
            last = index + 1 == len(whole.offsets)
            upto = len(whole.text) if last else max(at, end)
            shown.append(Piece(whole.text[at:upto], state))
            at = upto
        return shown

    # ------------------------------------------------------------------ conversation → text → ids and mask

    def _whole(self, example: Example, train_on: str, system_prompt: str | None) -> _Whole:
        written = self._as_text(example, train_on, system_prompt)
        ids, offsets = self._tokenise(written.text)
        return _Whole(written.text, ids, _mask(offsets, written).tolist(), offsets)

    def _as_text(self, example: Example, train_on: str, system_prompt: str | None) -> _Written:
        if example.text is not None:
            return self._document(example.text)
        messages = joined([*example.turns, *_chosen(example)], system_prompt)
        text, spans = self._write(messages, example.tools or None)
        silent = train_on == "all"
        return _Written(text, [span for span, message in spans if message.learned != silent], silent)

    def _document(self, text: str) -> _Written:
        """A document for continued pre-training: all of it is learned, and its end too."""
        begin = self._tokens["bos_token"] if self._adds_bos and not text.startswith(self._tokens["bos_token"]) else ""
        return _Written(begin + text + self._tokens.get("eos_token", ""), [], rest=True)

    def _write(self, messages: list[Said], tools: Any) -> tuple[str, list[tuple[Span, Said]]]:
        """The conversation's text, and where in it each answer stands, from its first character to its end-of-turn token."""
        messages, text = self._acceptable(messages, tools)
        plain = [message.as_dict() for message in messages]
        spans: list[tuple[Span, Said]] = []
        for index, message in enumerate(messages):
            if message.role == "assistant":
                spans.append((self._span(text, plain, index, tools, spans[-1][0][1] if spans else 0), message))
        return text, spans

    def _span(self, text: str, plain: list[dict[str, Any]], index: int, tools: Any, after: int) -> Span:
        """Where answer `index` stands in `text`.

        Its content is found by writing the conversation once more with a mark in its place: what stands before and
        after the mark stands before and after the content. That holds for templates that rewrite earlier turns too.
        The span begins where the prompt for this answer ends, for what the template puts between the two (an empty
        thinking block, a space) the model has to write itself; it ends with the special token that ends the turn.
        """
        mark = {"role": "assistant", "content": MARK}
        marked = self._template.render([*plain[:index], mark, *plain[index + 1 :]], tools=tools)
        before, found, behind = marked.partition(MARK)
        if found and MARK not in behind and text.startswith(before) and text.endswith(behind):
            start, end = len(before), len(text) - len(behind)
        else:
            content = plain[index]["content"].strip()
            start = text.find(content, after) if content else -1
            if start < 0:
                raise AfinaError(_unmarkable())
            end = start + len(content)
        prompt = self._prompt_of(plain[:index], tools)
        if prompt is not None and after <= len(prompt) <= start and text.startswith(prompt):
            start = len(prompt)
        return start, self._turn_end(text, end)

    def _prompt_of(self, plain: list[dict[str, Any]], tools: Any) -> str | None:
        try:
            return self._template.render(plain, answer=True, tools=tools)
        except TemplateError:
            return None

    def _turn_end(self, text: str, end: int) -> int:
        """The end of the special token that directly follows position `end` (white space between allowed), else `end`."""
        rest = end
        while rest < len(text) and text[rest].isspace():
            rest += 1
        for length in self._mark_lengths:
            if text[rest : rest + length] in self._marks:
                return rest + length
        return end

    def _acceptable(self, messages: list[Said], tools: Any = None, answer: bool = False) -> tuple[list[Said], str]:
        """The messages in the first form that the template takes without losing anything (Gemma's, for one, has no
        system role), and their text."""
        refused = ""
        for form in forms(messages):
            try:
                text = self._template.render([message.as_dict() for message in form], answer=answer, tools=tools)
            except TemplateError as error:
                refused = refused or error.message or ""
                continue
            if all(message.fits(text) for message in form):
                return form, text
        raise AfinaError(
            Problem(
                "template_refused",
                say(N_("The model's chat template does not take this conversation: {reason}"), reason=refused or "?"),
                say(N_("Let questions and answers alternate, or choose the chat template ChatML in the settings.")),
                field="chat_template",
            )
        )

    def _render(self, messages: list[Said], answer: bool) -> str:
        return self._acceptable(messages, answer=answer)[1]

    def _tokenise(self, text: str) -> tuple[list[int], list[Span]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)

    def _ids(self, text: str) -> list[int]:
        return self._tokenise(text)[0]

    def _stops_of_template(self) -> set[int]:
        """The special token that the template puts behind an answer."""
        turns = [Said("user", "?"), Said("assistant", MARK)]
        try:
            text = self._template.render([turn.as_dict() for turn in turns])
        except TemplateError:
            return set()
        at = text.find(MARK)
        end = self._turn_end(text, at + len(MARK)) if at >= 0 else 0
        stop = self._tokenizer.token_to_id(text[at + len(MARK) : end].strip()) if at >= 0 else None
        return set() if stop is None else {stop}


def _chosen(example: Example) -> Sequence[Turn]:
    """Of a preference, the better answer is what can be learned by example."""
    chosen = example.chosen
    return () if chosen is None else chosen


def _mask(offsets: Sequence[Span], written: _Written) -> NDArray[np.bool_]:
    """True for the tokens that are learned: those that cover any character of an answer; one that covers none counts where
    it stands. The first never is, for nothing stands before it to predict it from."""
    import numpy as np

    places = np.array(offsets, np.int64).reshape(-1, 2)
    starts, ends = places[:, 0], places[:, 1]
    ends = np.maximum(ends, starts + 1)
    mask = np.zeros(len(places), bool)
    for start, end in written.spans:
        mask |= (starts < end) & (ends > start)
    if written.rest:
        mask = ~mask
    mask[:1] = False
    return mask


def _cut(whole: _Whole, max_length: int | None) -> Encoded:
    if max_length is None or len(whole.ids) <= max_length:
        return Encoded(whole.ids, whole.mask)
    lost = whole.mask[max_length:]
    return Encoded(whole.ids[:max_length], whole.mask[:max_length], len(lost), sum(lost))


# ---------------------------------------------------------------------- files


def _json(path: Path) -> dict[str, Any]:
    """The object in the file, {} where there is no such file."""
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _special_tokens(config: dict[str, Any], older: dict[str, Any]) -> dict[str, str]:
    """The names templates may use (`bos_token`, …); absent ones stay undefined, which Jinja prints as nothing."""
    tokens = {}
    for name in SPECIAL:
        value = config.get(name) or older.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str) and value:
            tokens[name] = value
    return tokens


def _adds_bos(tokenizer: Tokenizer, config: dict[str, Any], tokens: dict[str, str]) -> bool:
    """Whether the model's own tokenizer begins every text with its BOS token."""
    bos = tokenizer.token_to_id(tokens.get("bos_token", ""))
    if bos is None:
        return False
    if isinstance(config.get("add_bos_token"), bool):
        return bool(config["add_bos_token"])
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    return ids[:1] == [bos]


def _end_of_turn(tokenizer: Tokenizer, tokens: dict[str, str]) -> str:
    """What ends an answer in the built-in templates: ChatML's token where the vocabulary has it, else the end of text."""
    has_chatml = tokenizer.token_to_id("<|im_end|>") is not None
    return "<|im_end|>" if has_chatml else tokens.get("eos_token", "<|im_end|>")


def _ids(value: Any) -> set[int]:
    items = value if isinstance(value, list) else [value]
    return {item for item in items if isinstance(item, int)}


def _no_tokenizer(folder: Path, reason: str = "") -> Problem:
    if reason:
        message = say(N_("The tokenizer of “{folder}” cannot be read: {reason}"), folder=folder.name, reason=reason)
    else:
        message = say(N_("“{folder}” has no tokenizer.json."), folder=folder.name)
    return Problem("no_tokenizer", message, say(N_("Add the model again; its tokenizer is converted on the way in.")))


def _unmarkable() -> Problem:
    return Problem(
        "template_mismatch",
        say(N_("The model's chat template leaves out an answer, so there is nothing to learn from it.")),
        say(N_("Choose the chat template ChatML or plain in the settings.")),
        field="chat_template",
    )
