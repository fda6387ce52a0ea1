"""timm's per-epoch cosine schedule as a pure function of the epoch."""

from __future__ import annotations

import math


def learning_rate(
    epoch: int, *, lr: float, min_lr: float, warmup_epochs: int, warmup_factor: float, epochs: int
) -> float:
    """Learning rate used throughout 0-based ``epoch``.

    As timm's CosineLRScheduler with ``warmup_prefix=False``: the cosine runs from epoch 0, the warm-up merely covers
    its beginning, so the peak lies below ``lr``: 4.946e-4 for 300 epochs and 4.750e-4 for 100 with the paper's
    recipe, which is what the reference code trains with.
    """
    if epoch < warmup_epochs:
        first = warmup_factor * lr
        return first + epoch * (lr - first) / warmup_epochs
    if epoch >= epochs:
        return min_lr
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * epoch / epochs))
