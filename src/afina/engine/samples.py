"""What the model answers now to a few fixed prompts: short, greedy, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afina.core.events import Answer
from afina.data.examples import Example, Turn
from afina.data.template import ChatTokenizer
from afina.engine.cached import Cached
from afina.engine.model import Network
from afina.engine.speaker import greedy
from afina.engine.tokens import Examples

MOST_TOKENS = 48
MOST_PROMPT = 512
HOW_MANY = 3


@dataclass(frozen=True)
class Prompt:
    """A question as people see it, as the model reads it, and the dataset's own answer where there is one."""

    text: str
    ids: list[int]
    expected: str | None = None


def choose(given: Sequence[str], examples: Examples, chat: ChatTokenizer, system_prompt: str | None) -> list[Prompt]:
    """The prompts of a run: those `given`, else three from `examples`, spread over them; documents give their beginning."""
    if given:
        return [Prompt(text, chat.prompt([Turn("user", text)], system_prompt)) for text in given]
    chosen: list[Prompt] = []
    seen: set[str] = set()
    places = [index * len(examples) // HOW_MANY for index in range(HOW_MANY)]
    for index in [*places, *range(min(len(examples), 50))]:
        prompt = _of(examples[index], chat, system_prompt) if index < len(examples) else None
        if prompt and prompt.text not in seen and len(prompt.ids) <= MOST_PROMPT and len(chosen) < HOW_MANY:
            seen.add(prompt.text)
            chosen.append(prompt)
    return chosen


def _of(example: Example, chat: ChatTokenizer, system_prompt: str | None) -> Prompt | None:
    """The example up to its first answer."""
    if example.text is not None:
        words = example.text.split()
        beginning, rest = " ".join(words[:12]), " ".join(words[12:60])
        return Prompt(beginning, chat.encode(Example(text=beginning)).ids[:-1], rest) if rest else None
    turns = [*example.turns, *(example.chosen or ())]
    for index, turn in enumerate(turns):
        if turn.role == "assistant" and index and turns[index - 1].role == "user":
            return Prompt(turns[index - 1].content, chat.prompt(turns[:index], system_prompt), turn.content)
    return None


def answers(network: Network, chat: ChatTokenizer, prompts: Sequence[Prompt]) -> list[str]:
    """Greedy answers of at most MOST_TOKENS tokens, computed together where the model can."""
    if not prompts:
        return []
    ids = [prompt.ids for prompt in prompts]
    speaker = network.speaker()
    if speaker is not None:
        written = greedy(speaker, ids, chat.stop_ids, MOST_TOKENS)
    else:
        with network.speak() as model:
            written = greedy(Cached(model), ids, chat.stop_ids, MOST_TOKENS)
    return [chat.decode(ids).strip() for ids in written]


def as_answers(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Answer]:
    """What the event says of it: prompt, answer, and the dataset's own answer."""
    return [Answer(prompt.text, text, prompt.expected) for prompt, text in zip(prompts, texts, strict=True)]
