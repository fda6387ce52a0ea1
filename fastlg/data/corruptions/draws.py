"""What is random about a corruption: a pure function of (corruption, severity, sample), whatever the batch, the device
or the run, so that all runs are tested on the same pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlg_kernels.rng import normals, sample_seeds, uniforms


class Draws:
    """Numbers for a batch of images; every call draws new ones, in the order of the calls."""

    def __init__(self, name: str, severity: int, sample_ids: Tensor):
        """``sample_ids``: int64 [N], on the device where the numbers shall be."""
        self.name, self.severity, self.sample_ids, self.calls = name, severity, sample_ids, 0

    def _seeds(self) -> Tensor:
        self.calls += 1
        return sample_seeds(self.calls, self.severity, self.sample_ids, f"corruption {self.name}")

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """float64 [N, *shape], from 0 to below 1."""
        return uniforms(self._seeds(), math.prod(shape)).reshape(len(self.sample_ids), *shape)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """float32 [N, *shape], standard normal."""
        drawn = normals(self._seeds(), math.prod(shape), dtype=torch.float32)
        return drawn.reshape(len(self.sample_ids), *shape)
