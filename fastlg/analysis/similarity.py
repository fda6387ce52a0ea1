"""Linear CKA (Kornblith et al. 2019) of every block's tokens with every stage of a teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Key = tuple
ROUNDING = 1e-12  # of float64 sums, relative


class Similarity:
    """Sums over any batches: the result is that of all images at once, however they are divided.

    A sample is one place of one image: both maps are averaged to the smaller of their grids, and each channel is
    centred over all places of all images. Of the centred features X and Y, CKA = |X' Y|^2 / (|X' X| |Y' Y|), Frobenius
    norms, in float64.
    """

    def __init__(self):
        self.counts: dict[Key, int] = {}
        self.sums: dict[Key, Tensor] = {}
        self.products: dict[tuple[Key, Key], Tensor] = {}
        self.size = (0, 0)

    @torch.no_grad()
    def add(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> None:
        """Maps [N, C, H, W] of every block, and of every stage, for the same N images."""
        self.size = len(students), len(teachers)
        taken: dict[Key, Tensor] = {}
        pairs = []
        for block, own in enumerate(students):
            for stage, guide in enumerate(teachers):
                grid = tuple(map(min, own.shape[2:], guide.shape[2:]))
                keys = ("student", block, grid), ("teacher", stage, grid)
                for key, maps in zip(keys, (own, guide), strict=True):
                    if key not in taken:
                        taken[key] = _samples(maps, grid)
                pairs.append(keys)
        for key, samples in taken.items():
            self.counts[key] = self.counts.get(key, 0) + len(samples)
            self.sums[key] = self.sums.get(key, 0) + samples.sum(0)
            pairs.append((key, key))
        for one, other in pairs:
            product = taken[one].T @ taken[other]
            self.products[one, other] = self.products.get((one, other), 0) + product

    def result(self) -> list[list[float | None]]:
        """[blocks][stages] from 0 to 1; None where one of the two never changes."""
        blocks, stages = self.size
        found: list[list[float | None]] = [[None] * stages for _ in range(blocks)]
        for one, other in self.products:
            if (one[0], other[0]) != ("student", "teacher"):
                continue
            if self._is_constant(one) or self._is_constant(other):
                continue
            cross, own, guide = (self._covariance(*pair) for pair in ((one, other), (one, one), (other, other)))
            found[one[1]][other[1]] = (cross.square().sum() / (own.norm() * guide.norm())).item()
        return found

    def _is_constant(self, key: Key) -> bool:
        """But for what is lost when a sum of squares is taken from another."""
        return bool(self._covariance(key, key).norm() <= ROUNDING * self.products[key, key].norm())

    def _covariance(self, one: Key, other: Key) -> Tensor:
        return self.products[one, other] - torch.outer(self.sums[one], self.sums[other]) / self.counts[one]


def _samples(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """[N, C, H, W] -> float64 [N H' W', C], averaged to ``grid``."""
    maps = maps.double() if tuple(maps.shape[2:]) == grid else F.adaptive_avg_pool2d(maps.double(), grid)
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
