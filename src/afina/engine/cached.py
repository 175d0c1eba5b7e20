"""Answering with transformers' own layers and whatever they keep of what was read: a cache of keys and values, or a recurrent state.

For families that Afina does not compute itself, and on graphics cards. Knows nothing of text: token ids in, scores out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from afina.engine.attention import KNOWN

KEPT = ("past_key_values", "cache_params", "state")
"""What different families call it, in what they return as in what they take: attention, Mamba and its like, RWKV."""
UNUSABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What a rare family's own code fails with when it keeps something."""


class Cached:
    """One text or several that grow, asked as a Speaker is. Where a model keeps nothing, or fails when it should, all is read anew for each
    token.

    Texts of different lengths are read together, padded on the left, by families that are known to look past padding; by others
    each by itself.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._keeps = True
        self._pads = model.config.get_text_config().model_type in KNOWN
        self._apart: list[Cached] = []
        self._ids = self._seen = torch.zeros(0, 0, dtype=torch.long)
        self._kept: dict[str, Any] = {}
        self.device: torch.device = next(model.parameters()).device

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts, forgetting what was before; the scores (rows, V) of what follows."""
        self._kept = {}
        self._apart = [] if len(prompts) == 1 or self._pads else [Cached(self._model) for _ in prompts]
        if self._apart:
            return torch.cat([one.begin([prompt]) for one, prompt in zip(self._apart, prompts, strict=True)])
        longest = max(map(len, prompts))
        self._ids = self._rows([[0] * (longest - len(each)) + list(each) for each in prompts])
        self._seen = self._rows([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
        return self._read(self._ids)

    @torch.inference_mode()
    def next(self, tokens: Sequence[int]) -> Tensor:
        """One more token for every row; the scores (rows, V) of what follows."""
        if self._apart:
            return torch.cat([one.next([token]) for one, token in zip(self._apart, tokens, strict=True)])
        new = self._rows([[token] for token in tokens])
        self._ids = torch.cat([self._ids, new], dim=1)
        self._seen = torch.cat([self._seen, torch.ones_like(new)], dim=1)
        return self._read(new if self._kept else self._ids)

    def _read(self, ids: Tensor) -> Tensor:
        more: dict[str, Any] = dict(self._kept)
        if ids.shape[0] > 1:
            positions = (self._seen.cumsum(dim=1) - 1).clamp_(min=0)
            more |= {"attention_mask": self._seen, "position_ids": positions[:, -ids.shape[1] :]}
        try:
            output = self._model(input_ids=ids, use_cache=self._keeps, logits_to_keep=1, **more)
        except UNUSABLE:
            if not self._keeps:
                raise
            self._keeps, self._kept = False, {}
            return self._read(self._ids)
        found = {name: getattr(output, name, None) for name in KEPT if self._keeps}
        self._kept = {name: value for name, value in found.items() if value is not None}
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _rows(self, numbers: list[list[int]]) -> Tensor:
        return torch.tensor(numbers, device=self.device)
