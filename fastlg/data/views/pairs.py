"""Pairs of places on a student's grid, for the loss that asks how far apart they are; seeded per sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlg_kernels.rng import sample_seeds, uniforms


class PairSampler:
    """Draws ``count`` pairs per sample, both ends uniform over a grid of ``side`` x ``side`` and with replacement.

    A sample's pairs are a pure function of (seed, epoch, sample_id); ``weight_at(epoch)`` is what their loss counts.
    They are drawn on the samples' device, outside the step that reads them, so that a compiled or captured step holds
    no random number and no epoch.
    """

    def __init__(self, *, side: int, count: int, seed: int, weight_at: Callable[[int], float]):
        self.side, self.count, self.seed, self.weight_at = side, count, seed, weight_at

    def __call__(self, sample_ids: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """sample_ids int64 [N] -> (pairs int64 [N, 2, count, 2], weight float32 [N]), see batch.Views."""
        drawn = uniforms(sample_seeds(self.seed, epoch, sample_ids, "drloc"), 4 * self.count)
        places = drawn.mul_(self.side).to(torch.int64)  # below side: u < 1 is 2^-53 or more below 1
        weight = torch.full((len(sample_ids),), self.weight_at(epoch), device=sample_ids.device)
        return places.view(-1, 2, self.count, 2), weight
