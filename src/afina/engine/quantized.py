"""Base models whose linear layers have 8 or 4 bits a weight, by bitsandbytes: for LoRA beside them.

4 bits are QLoRA's (Dettmers et al. 2023): NF4, the scales quantised once more. 8 bits are LLM.int8() (Dettmers et al. 2022),
which computes columns with very large inputs whole. Embeddings, norms and the output head stay as they are. The layers are
bitsandbytes' own and the LoRA on them is PEFT's, which Afina does not compute itself: such models take the packed way.
"""

from __future__ import annotations

import logging
from math import prod
from typing import Any

import torch
from torch import Tensor

from afina.core.errors import AfinaError
from afina.core.quantization import PACKAGE, missing

# PEFT imports it wherever it is installed; it would tell of kernels it did not find, and of casts in every product
logging.getLogger(PACKAGE).setLevel(logging.ERROR)


def arguments(quantization: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What transformers' `from_pretrained` needs so that weights are quantised while they are read, one after the other, and
    never all there whole; {} for “none”. dtype: computed in. Raises AfinaError `bitsandbytes_missing`."""
    if quantization == "none":
        return {}
    if (problem := missing(quantization)) is not None:
        raise AfinaError(problem)
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_as_they_are(model: Any) -> None:
    """Keep bitsandbytes from laying the weights out anew where it answers: on processors with AVX512-BF16 it does so in place,
    rounds the scales for good, and a model that answers between two steps of its training would learn on with others."""
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def count(weight: Tensor) -> int:
    """How many numbers `weight` stands for: two of 4 bits share a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else prod(state.shape)
