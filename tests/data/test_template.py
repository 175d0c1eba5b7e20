"""A conversation becomes ids and mask: as the model's own tokenizer writes it, and learned exactly where it answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from afina.core.errors import AfinaError
from afina.data.examples import Example, Turn
from afina.data.template import ChatTokenizer, Encoded
from tests import tiny

ZEPHYR = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>user\n' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'system' %}{{ '<|im_start|>system\n' + m['content'] + eos_token }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n'  + m['content'] + eos_token }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}\n{% endfor %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
THINKING = (  # as Qwen3: earlier answers lose their thoughts, the last one gets an empty thought
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.index0 > ns.last %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content }}"
    "{% else %}{{ '<|im_start|>assistant\n' + content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}"
    "{% for message in loop_messages %}{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>' + system + '<</SYS>>' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GENERATION = (
    "{%- for m in messages %}\n  {%- if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}\n  {%- else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}\n{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
TEMPLATES = {
    "chatml": tiny.CHATML,
    "zephyr": ZEPHYR,
    "gemma": GEMMA,
    "thinking": THINKING,
    "llama2": LLAMA2,
    "generation": GENERATION,
}

USER = Turn("user", "Who are you?")
ANSWER = Turn("assistant", "I am á small model.\n\nBondia ñ!")
TALK = (USER, ANSWER, Turn("user", "And coffee?"), Turn("assistant", "It grows in Ermera."))


def folder_with(path: Path, template: str | None) -> Path:
    tiny.build_tokenizer(path, template)
    return path


def learned(chat: ChatTokenizer, encoded: Encoded) -> list[str]:
    """The stretches of learned tokens, as raw text."""
    stretches: list[list[int]] = []
    for index, token in enumerate(encoded.ids):
        if encoded.mask[index]:
            if not (index and encoded.mask[index - 1]):
                stretches.append([])
            stretches[-1].append(token)
    return [chat._tokenizer.decode(ids, skip_special_tokens=False) for ids in stretches]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = folder_with(tmp_path, TEMPLATES[name])
    chat, theirs = ChatTokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    plain = [{"role": turn.role, "content": turn.content} for turn in TALK]
    assert chat.encode(Example(TALK)).ids == theirs.apply_chat_template(plain, return_dict=False)
    assert chat.prompt(TALK[:3]) == theirs.apply_chat_template(plain[:3], add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learned(tmp_path: Path, name: str) -> None:
    """The answers, each with the token that ends it and nothing after; the prompt's ids stand before the answer's."""
    chat = ChatTokenizer.load(folder_with(tmp_path, TEMPLATES[name]))
    encoded = chat.encode(Example(TALK))
    end = "<|im_end|>"
    before = {"thinking": "<think>\n\n</think>\n\n", "zephyr": "\n", "llama2": " "}.get(name, "")
    space = " " if name == "llama2" else ""
    first = "" if name == "thinking" else before
    assert learned(chat, encoded) == [first + ANSWER.content + space + end, before + TALK[3].content + space + end]
    prompt = chat.prompt(TALK[:3])
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.mask[len(prompt)]
    assert chat.stop_ids == {2}


def test_a_system_text_where_the_template_has_none(tmp_path: Path) -> None:
    chat = ChatTokenizer.load(folder_with(tmp_path, GEMMA))
    turns = (Turn("system", "Be kind."), USER, ANSWER)
    text = "".join(piece.text for piece in chat.pieces(Example(turns)))
    assert "<|im_start|>user\nBe kind.\n\nWho are you?<|im_end|>" in text
    assert chat.encode(Example(turns)).ids == chat.encode(Example(turns[1:]), system_prompt="Be kind.").ids


def test_turns_of_one_role_are_joined_and_an_answer_may_come_first(tmp_path: Path) -> None:
    chat = ChatTokenizer.load(folder_with(tmp_path, GEMMA))
    twice = Example((Turn("user", "Who"), Turn("user", "are you?"), ANSWER))
    assert chat.encode(twice).ids == chat.encode(Example((Turn("user", "Who\n\nare you?"), ANSWER))).ids
    assert learned(chat, chat.encode(Example((ANSWER,)))) == [ANSWER.content + "<|im_end|>"]


def test_weight_zero_is_read_only_and_all_is_all(tmp_path: Path) -> None:
    chat = ChatTokenizer.load(folder_with(tmp_path, tiny.CHATML))
    turns = (USER, Turn("assistant", "No.", weight=0.0), *TALK[2:])
    assert learned(chat, chat.encode(Example(turns))) == [TALK[3].content + "<|im_end|>"]
    every = chat.encode(Example(TALK), train_on="all")
    assert every.mask == [False] + [True] * (len(every.ids) - 1)
    assert "No." not in "".join(learned(chat, chat.encode(Example(turns), train_on="all")))


def test_cutting(tmp_path: Path) -> None:
    chat = ChatTokenizer.load(folder_with(tmp_path, tiny.CHATML))
    whole = chat.encode(Example(TALK))
    short = chat.encode(Example(TALK), max_length=40)
    assert (short.ids, short.mask) == (whole.ids[:40], whole.mask[:40])
    assert (short.cut, short.cut_answer) == (len(whole.ids) - 40, sum(whole.mask[40:]))
    assert chat.count(Example(TALK)) == len(whole.ids)
    states = [piece.state for piece in chat.pieces(Example(TALK), max_length=40)]
    assert states.count("cut") == short.cut
    assert states[:40] == ["learned" if mask else "read" for mask in short.mask]


@pytest.mark.parametrize("length", [16, 17, 31, 1000])
def test_a_long_text_loses_no_token(tmp_path: Path, length: int) -> None:
    """Each token but the very first is learned exactly once, and its end too."""
    chat = ChatTokenizer.load(folder_with(tmp_path, None))
    text = Example(text="Coffee grows in the hills of Ermera; people dry it in the sun. " * 4)
    whole = chat.encode(text)
    pieces = chat.encode_all(text, max_length=length)
    assert all(len(piece.ids) <= length for piece in pieces)
    taught = [token for piece in pieces for token, mask in zip(piece.ids, piece.mask, strict=True) if mask]
    assert taught == whole.ids[1:]
    assert whole.ids[-1] == 2
    assert sum(piece.cut for piece in pieces) == 0


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_models_without_a_template(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = folder_with(tmp_path, None)
    chat = ChatTokenizer.load(folder, name)
    assert not chat.has_template
    assert ChatTokenizer.load(folder).source == ChatTokenizer.load(folder, "chatml").source
    space = " " if name == "plain" else ""
    assert learned(chat, chat.encode(Example((USER, ANSWER)))) == [space + ANSWER.content + "<|im_end|>"]
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = chat.source
    plain = [{"role": turn.role, "content": turn.content} for turn in TALK]
    assert theirs.apply_chat_template(plain, return_dict=False) == chat.encode(Example(TALK)).ids


def test_bos_exactly_once(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, None)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<|endoftext|>"}))
    for template in ("chatml", "plain"):
        chat = ChatTokenizer.load(folder, template)
        assert chat.encode(Example(TALK)).ids.count(0) == 1
        assert chat.prompt((USER,))[:1] == [0]
    text = ChatTokenizer.load(folder).encode(Example(text="Coffee"))
    assert (text.ids[0], text.ids.count(0), text.mask[0]) == (0, 1, False)


def test_tool_calls_are_learned(tmp_path: Path) -> None:
    chat = ChatTokenizer.load(folder_with(tmp_path, tiny.CHATML))
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"town": "Dili"}'}}
    turns = (
        USER,
        Turn("assistant", "", tool_calls=(call,)),
        Turn("tool", "31 degrees"),
        Turn("assistant", "It is warm."),
    )
    first, last = learned(chat, chat.encode(Example(turns)))
    assert '"name": "weather"' in first
    assert '{"town": "Dili"}' in first
    assert last == "It is warm.<|im_end|>"


def test_pieces_join_to_the_whole(tmp_path: Path) -> None:
    chat = ChatTokenizer.load(folder_with(tmp_path, tiny.CHATML))
    pieces = chat.pieces(Example(TALK))
    assert len(pieces) == chat.count(Example(TALK))
    assert "".join(piece.text for piece in pieces).count(ANSWER.content) == 1
    assert "".join(piece.text for piece in pieces if piece.state == "learned").startswith(ANSWER.content)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AfinaError) as missing:
        ChatTokenizer.load(tmp_path)
    assert missing.value.code == "no_tokenizer"
    with pytest.raises(AfinaError) as broken:
        ChatTokenizer.load(folder_with(tmp_path / "a", "{% for m in messages %}"))
    assert broken.value.code == "bad_chat_template"
    silent = ChatTokenizer.load(folder_with(tmp_path / "b", "{{ messages[0]['content'] }}"))
    with pytest.raises(AfinaError) as dropped:
        silent.encode(Example((USER, ANSWER)))
    assert dropped.value.code == "template_mismatch"
    strict = ChatTokenizer.load(folder_with(tmp_path / "c", "{{ raise_exception('never') }}"))
    with pytest.raises(AfinaError) as refused:
        strict.encode(Example((USER, ANSWER)))
    assert refused.value.code == "template_refused"
    assert "never" in str(refused.value)


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(__init__=1) %}x",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_templates_stay_in_their_sandbox(tmp_path: Path, escape: str) -> None:
    with pytest.raises(AfinaError) as caught:
        ChatTokenizer.load(folder_with(tmp_path, escape)).encode(Example((USER, ANSWER)))
    assert caught.value.code in ("template_refused", "template_mismatch")
