"""A causal language model to compute with: loaded from safetensors, adapters merged, loss of a row of examples.

Three ways give the same loss. The fast one lays examples end to end and computes the layers itself (`decoder.py`). The
packed one does so with transformers' own layers, our attention and our loss: for other families, for adapters with
dropout, and on graphics cards. The reference one is transformers' own forward, an example at a time, for what neither
can serve. Families that the tests do not cover are tried out on a few tokens before the packed way is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from afina.core.compute import collector_at_rest
from afina.engine import attention, fused, kernels, lora, memory, pretrained, quantized
from afina.engine import device as devices
from afina.engine.batches import Item, Row, lay_end_to_end
from afina.engine.decoder import FAMILIES, Decoder
from afina.engine.folders import parameters_of
from afina.engine.loss import cross_entropy
from afina.engine.speaker import Speaker, stored_head

Way = Literal["fast", "packed", "reference"]


@collector_at_rest()
def load(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    adapters: Sequence[Path] = (),
    quantization: str = "none",
) -> Any:
    """transformers' model of `folder` in `dtype`, with LoRA `adapters` merged in their order.

    quantization: bits of the linear layers' weights ("none", "8bit", "4bit"; then nothing can be merged). Raises AfinaError `broken_model`, `adapter_mismatch`, `bitsandbytes_missing`,
    `out_of_memory`.
    """
    more = quantized.arguments(quantization, dtype, device)
    with memory.asked_for(folder.name, parameters_of(folder) * dtype.itemsize, dtype, device):
        model = pretrained.load(folder, dtype=dtype, **more)
        for adapter in adapters:
            model = lora.beside(model, adapter).merge_and_unload()
        model.requires_grad_(False)
        if not more:  # else it is already there
            return model.to(device)
    quantized.keep_as_they_are(model)
    return model


@collector_at_rest()
def text_config(folder: Path) -> Any:
    """The config of the language part of the model in `folder`. Raises AfinaError `broken_model`."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise pretrained.unloadable(folder, error) from error


def shapes(config: Any) -> list[tuple[int, int]]:
    """(outputs, inputs) of the largest products of a layer, to measure with."""
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    return [(inner, hidden), (hidden, inner)]


class Network:
    """A model and how its loss is computed. `path` says which of the three ways; `best`: the best one to try; `attention`:
    by which kernel the examples of a packed row are computed (see `kernels.py`); compiled: which element-wise parts of
    transformers' layers are (see `fused.py`)."""

    def __init__(self, model: Any, *, best: Way = "fast") -> None:
        self.model = model
        self.config = model.config.get_text_config()
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = model.dtype
        self._own_attention: str = model.config._attn_implementation
        self.attention = kernels.SPLIT
        self.compiled: list[str] = []
        self.path: Way = "packed" if best != "reference" and self._can_pack() else "reference"
        self._decoder = self._build_decoder() if best == "fast" and self.path == "packed" else None
        if self._decoder is not None:
            self.path = "fast"
        self._attend(self.path == "packed")
        if self.path == "packed" and self.config.model_type not in attention.KNOWN and not self._agrees():
            self.path = "reference"
            self._attend(False)
        if self.path == "packed":
            self._choose_kernel()
            if devices.compiles(self.device) and self.config.model_type in FAMILIES:
                self.compiled = fused.install(self.model)

    def loss(self, row: Row) -> Tensor:
        """Summed loss in nats over the learned tokens of `row`, differentiable; see `backward`."""
        row = row.to(self.device)
        if self.path == "reference":
            return self._reference_loss(row)
        with attention.laid_out(row.lengths):
            return self._packed_loss(row)

    def backward(self, row: Row, weight: float) -> float:
        """Add the gradient of `weight` × the summed loss of `row`; returns the summed loss."""
        row = row.to(self.device)
        if self.path == "reference":
            loss = self._reference_loss(row)
            (loss * weight).backward()  # type: ignore[no-untyped-call]
        else:
            with attention.laid_out(row.lengths):
                loss = self._packed_loss(row)
                (loss * weight).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def reserve(self, tokens: int) -> None:
        """Rows will have up to `tokens`; where memory is kept from row to row, it is made for that."""
        if self._decoder is not None:
            self._decoder.reserve(tokens)

    def weights_changed(self) -> None:
        """To be called whenever trained weights were changed: after a step of the optimizer, after loading."""
        if self._decoder is not None:
            self._decoder.changed = True

    def speaker(self) -> Speaker | None:
        """What answers with the present weights, where the layers are computed here."""
        if self._decoder is None:
            return None
        weight, bias = self._head()
        try:
            return Speaker(self._decoder, stored_head(weight, bias, None, *score_changes(self.config)))
        except ValueError:
            return None

    def speak(self) -> _Speaking:
        """A context in which the model answers: its own attention with a cache, no dropout, no gradients."""
        return _Speaking(self)

    def checkpoint_activations(self) -> None:
        """Compute activations again in backward in place of keeping them."""
        if self._decoder is not None:
            self._decoder.recompute = True
            self._decoder.reserve(0)
            return
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    def _hidden(self, row: Row) -> Tensor:
        """The last hidden states (T, d) of `row`, to be asked for with its examples laid out."""
        if self._decoder is not None:
            return self._decoder.hidden(row.filled_up(self._decoder.multiple))
        decoder = self.model.get_decoder()
        hidden: Tensor = decoder(
            input_ids=row.ids[None], position_ids=row.positions[None], use_cache=False
        ).last_hidden_state[0]
        return hidden

    def _packed_loss(self, row: Row) -> Tensor:
        hidden = self._hidden(row)
        weight, bias = self._head()
        scale, softcap = score_changes(self.config)
        # a place with two targets gets two gradients: index_select adds them in the same order every time
        chosen = hidden[row.at] if row.weights is None else hidden.index_select(0, row.at)
        return cross_entropy(chosen, weight, bias, row.targets, scale, softcap, row.weights)

    def _reference_loss(self, row: Row) -> Tensor:
        losses = []
        start = 0
        for length in row.lengths:
            end = start + length
            chosen = (row.at >= start) & (row.at < end)
            logits = self.model(input_ids=row.ids[None, start:end], use_cache=False).logits[0]
            at, targets = row.at[chosen] - start, row.targets[chosen]
            losses.append(F.cross_entropy(logits[at].float(), targets, reduction="sum"))
            start = end
        return torch.stack(losses).sum()

    def _head(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the output head, an adapter on it included."""
        head = self.model.get_output_embeddings()
        if isinstance(head, nn.Linear):
            return head.weight, head.bias
        weight = head.base_layer.weight
        for name in head.active_adapters:
            if name in head.lora_A:
                delta = head.lora_B[name].weight @ head.lora_A[name].weight * head.scaling[name]
                weight = weight + delta.to(weight.dtype)
        return weight, head.base_layer.bias

    def _build_decoder(self) -> Decoder | None:
        """The layers computed here, where they can be: on the processor, for families and adapters that are known."""
        if not devices.computes_layers(self.device):
            return None
        try:
            return Decoder(self.model)
        except ValueError:
            return None

    def _can_pack(self) -> bool:
        head = self.model.get_output_embeddings()
        plain = isinstance(head, nn.Linear) or (
            hasattr(head, "lora_A") and all(isinstance(drop, nn.Identity) for drop in head.lora_dropout.values())
        )
        return plain and self.model._can_set_attn_implementation()

    def _attend(self, packed: bool) -> None:
        name = kernels.register(self.attention) if packed else self._own_attention
        self.model.set_attn_implementation(name)

    @torch.no_grad()
    def _choose_kernel(self) -> None:
        """Take the fastest kernel for attention that does right what the layers ask for."""
        names = devices.attention_kernels(self.device, self.dtype)
        if not names:
            return
        row = _trial(self.config.vocab_size).to(self.device)
        with attention.laid_out(row.lengths), attention.recorded() as calls:
            self._packed_loss(row)
        with torch.enable_grad():
            self.attention = kernels.best(names, calls, self.device, self.dtype)
        self._attend(True)

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether the fast path gives the reference's loss on two short examples, and keeps them apart (an unknown family may mix them)."""
        row = _trial(self.config.vocab_size).to(self.device)
        training = self.model.training
        self.model.eval()
        try:
            with attention.laid_out(row.lengths):
                fast = float(self._packed_loss(row))
                if not self._keeps_apart(row):
                    return False
        except (NotImplementedError, TypeError, ValueError, RuntimeError, AttributeError):
            return False
        finally:
            self.model.train(training)
        self._attend(False)
        reference = float(self._reference_loss(row))
        self._attend(True)
        return math.isclose(fast, reference, rel_tol=1e-3 if self.dtype == torch.float32 else 2e-2)

    def _keeps_apart(self, row: Row) -> bool:
        """Whether no token of the first example of `row` has any part in the others: what follows it has a gradient of exactly zero there.
        Convolutions and recurrent layers read on over the end of an example, which the loss of a few tokens hardly shows."""
        first, found = row.lengths[0], []

        def catch(_: Any, __: Any, embedded: Tensor) -> Tensor:
            found.append(embedded.detach().requires_grad_())
            return found[-1].clone()

        caught = self.model.get_input_embeddings().register_forward_hook(catch)
        try:
            with torch.enable_grad():
                others = self._hidden(row)[first : len(row)].float()
                weights = torch.randn(others.shape, generator=torch.Generator().manual_seed(0)).to(others.device)
                (gradient,) = torch.autograd.grad((others * weights).sum(), found[:1])
        finally:
            caught.remove()
        return not bool(gradient[0, :first].any())


def _trial(vocabulary: int) -> Row:
    """Two short examples of any tokens."""
    random = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, vocabulary, (length,), generator=random, dtype=torch.int32) for length in (9, 14)]
    return lay_end_to_end([Item(each, torch.arange(len(each)) > 0) for each in ids])


class _Speaking:
    """See `Network.speak`."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._no_grad = torch.no_grad()

    def __enter__(self) -> Any:
        network = self._network
        network._attend(False)
        network.model.eval()
        self._no_grad.__enter__()
        return network.model

    def __exit__(self, *error: Any) -> None:
        self._no_grad.__exit__(*error)
        self._network.model.train()
        self._network._attend(self._network.path == "packed")


def score_changes(config: Any) -> tuple[float, float | None]:
    """What some families do to the scores after the head: a factor (Cohere, Granite), a soft cap (Gemma)."""
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return scale, None if softcap is None else float(softcap)
