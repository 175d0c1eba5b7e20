"""Validation: the mean loss over the answer tokens of examples that are not learned from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from afina.engine.batches import Item, Row
from afina.engine.model import Network


def validation_loss(network: Network, rows: Iterable[Row]) -> float:
    """Nats per answer token over all examples in `rows`; the model is left as it was."""
    was_training = network.model.training
    network.model.eval()
    total, count = 0.0, 0
    try:
        with torch.no_grad():
            for row in rows:
                total += float(network.loss(row))
                count += row.learned
    finally:
        network.model.train(was_training)
    return total / max(1, count)


def bounded(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of `items`, evenly spread over them, always the same ones."""
    if len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]
