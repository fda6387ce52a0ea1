"""Learning rate, guidance and image size as pure functions of the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature

from fastlg.config import OptimConfig
from fastlg.engine.update.timm_schedules import timm_rates


def schedule_of(optim: OptimConfig) -> Callable[[int], float]:
    """Learning rate of each 0-based epoch, ours or timm's. Raises UserError for what timm does not have."""
    if optim.schedule_of_timm:
        return timm_rates(optim)
    return partial(learning_rate, **optim.model_dump(include=set(signature(learning_rate).parameters) - {"epoch"}))


def learning_rate(
    epoch: int,
    *,
    lr: float,
    min_lr: float,
    warmup_epochs: int,
    warmup_factor: float,
    epochs: int,
    schedule: str = "cosine",
    flat: float = 0.0,
) -> float:
    """Learning rate used throughout 0-based ``epoch``.

    As timm's CosineLRScheduler with ``warmup_prefix=False``: the curve runs from epoch 0, the warm-up merely covers
    its beginning, so the peak of a cosine lies below ``lr``: 4.946e-4 for 300 epochs and 4.750e-4 for 100 with the
    paper's recipe, which is what the reference code trains with.

    schedule  the curve, cosine or linear; an epoch's rate is the curve's at its beginning, so that ``min_lr`` lies at
              the end of the last epoch
    flat      share of the epochs before the curve begins
    """
    if epoch < warmup_epochs:
        first = warmup_factor * lr
        return first + epoch * (lr - first) / warmup_epochs
    return min_lr + (lr - min_lr) * fall(schedule, epoch, flat * epochs, epochs)


def guidance_share(epoch: int, *, schedule: str, until: float, epochs: int) -> float:
    """What is left of the guidance's weights throughout 0-based ``epoch``: constant up to the share ``until`` of the
    epochs, or falling to 0 there in a line or a cosine, which begins with the first epoch."""
    return fall(schedule, epoch, 0.0, until * epochs)


def image_size(epoch: int, *, resolution: Sequence[tuple[float, int]], epochs: int, full: int) -> int:
    """Side in px of what the student sees throughout 0-based ``epoch``: that of the last entry (share, px) of
    ``resolution`` that began before it or with it; ``full`` where there is none."""
    return next((size for share, size in reversed(resolution) if share * epochs <= epoch), full)


def fall(schedule: str, epoch: int, begin: float, end: float) -> float:
    """1 up to ``begin``, 0 from ``end`` on, in epochs; between the two a cosine, a line, or 1 if constant."""
    if epoch >= end:
        return 0.0
    if schedule == "constant":
        return 1.0
    passed, length = max(0.0, epoch - begin), end - begin
    return 0.5 * (1 + math.cos(math.pi * passed / length)) if schedule == "cosine" else 1 - passed / length
