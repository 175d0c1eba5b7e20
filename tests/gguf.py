"""A tiny Llama as a GGUF file, of random numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from gguf import GGUFWriter

WIDTH, HEADS, LAYERS, INNER = 32, 2, 1, 64


def write(folder: Path, file: Path) -> Path:
    """`file` with the tokenizer of the model in `folder`."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    made = GGUFWriter(file, "llama")
    made.add_name("Tiny")
    made.add_context_length(128)
    made.add_embedding_length(WIDTH)
    made.add_block_count(LAYERS)
    made.add_feed_forward_length(INNER)
    made.add_head_count(HEADS)
    made.add_head_count_kv(HEADS)
    made.add_rope_dimension_count(WIDTH // HEADS)
    made.add_layer_norm_rms_eps(1e-5)
    made.add_vocab_size(len(vocabulary))
    made.add_tokenizer_model("gpt2")
    made.add_token_list(vocabulary)
    made.add_token_types([3 if token.startswith("<|") else 1 for token in vocabulary])
    made.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    made.add_bos_token_id(1)
    made.add_eos_token_id(2)
    chance = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        made.add_tensor(name, chance.standard_normal(shape, dtype=np.float32) * 0.02)

    tensor("token_embd.weight", len(vocabulary), WIDTH)
    tensor("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        for name in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{layer}.{name}.weight", WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            tensor(f"blk.{layer}.{name}.weight", INNER, WIDTH)
        tensor(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return file
