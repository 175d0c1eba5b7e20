"""Two-layer models of each family, built in code, with a tokenizer trained here: small enough for any test."""

from __future__ import annotations

import json
from pathlib import Path

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEXT = [
    "What is the capital of Timor-Leste? The capital of Timor-Leste is Dili, a town by the sea.",
    "Bondia! Diak ka lae? Hau diak, obrigadu barak. Ita-boot nia naran saida?",
    "Who are you? I am a small model, and I answer questions as well as I can.",
    "Coffee grows in the hills of Ermera; people dry it in the sun and carry it to the market.",
    "Instruction, question, answer, response: 0 1 2 3 4 5 6 7 8 9 — á é í ó ú ñ ç ã õ.",
]


def build_tokenizer(folder: Path, chat_template: str | None = CHATML) -> int:
    """Train a small byte-level BPE on TEXT and write it to `folder`; returns the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<|im_start|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
    }
    if chat_template:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def build_model(folder: Path, family: str = "llama", chat_template: str | None = CHATML, seed: int = 0) -> Path:
    """A random two-layer causal language model of `family` (one of FAMILIES) with its tokenizer, as safetensors."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = build_tokenizer(folder, chat_template)
    name = "gemma3_text" if family == "gemma3" else family
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": family in ("llama", "gemma2", "gemma3"),
    }
    if family in ("mistral", "gemma2", "gemma3"):
        settings["sliding_window"] = 16
    if family.startswith("gemma"):
        settings["query_pre_attn_scalar"] = 8
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings), dtype=torch.float32)
    model.save_pretrained(folder)
    return folder
