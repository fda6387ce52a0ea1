"""One pass over a store for a feature cache: every sample once, in a given order, unflipped."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from fastlg.config import AugmentConfig
from fastlg.data.loaders.plan import Draw, SamplePlan
from fastlg.data.store.store import Store


@dataclass(frozen=True)
class OncePlan(SamplePlan):
    """Every sample once, unflipped, chunk by chunk: whole images, or the one crop that a fixed recipe gives each.

    chunks  int64 [N] each: the samples of a batch
    """

    chunks: tuple[Tensor, ...] = ()
    whole: bool = True

    def order(self, count: int, epoch: int) -> Tensor:
        return torch.cat(self.chunks)

    def slices(self, count: int) -> list[slice]:
        ends = accumulate((len(chunk) for chunk in self.chunks), initial=0)
        return [slice(*pair) for pair in pairwise(ends)]

    def draw(self, sample_ids: Tensor, sizes: Tensor, epoch: int) -> Draw:
        own = sizes[sample_ids]
        boxes = torch.cat([torch.zeros_like(own), own], dim=1)
        if not self.whole:
            boxes = super().draw(sample_ids, sizes, 0).boxes
        return Draw(sample_ids, boxes, torch.zeros(len(sample_ids), dtype=torch.bool))


def moving_crops(augment: AugmentConfig, store: Store) -> str:
    """Why the crops differ from epoch to epoch; "" when they never do."""
    for name in ("crop_scale", "crop_ratio"):
        if tuple(getattr(augment, name)) != (1.0, 1.0):
            return f"augment.{name} is {list(getattr(augment, name))}, not [1, 1]"
    height, width = torch.from_numpy(store.sizes).double().unbind(1)
    jitter = (height != width) & (torch.round(torch.sqrt(height * width)) <= torch.minimum(height, width))
    if jitter.any():
        first = int(jitter.nonzero()[0])
        return f"image {first} of {store.path} is {int(height[first])} x {int(width[first])} px, its square crop moves"
    return ""
