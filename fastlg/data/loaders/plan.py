"""What a loader delivers, whichever loader it is: order, batches, crop boxes and flips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastlg.data.loaders.crops import draw_crops, draw_flips, epoch_order, rank_batches
from fastlg.errors import UserError

INTERPOLATIONS = ("bicubic", "bilinear")
_BLOCK_SAMPLES = 1 << 16  # boxes are drawn for so many samples at once: 10 ms on one core


class Draw(NamedTuple):
    """The samples of one batch. On the CPU.

    sample_ids  int64 [N]
    boxes       int64 [N, 4]: y, x, height, width in pixels of the stored image
    flip        bool [N]
    """

    sample_ids: Tensor
    boxes: Tensor
    flip: Tensor

    def fractions(self, sizes: Tensor) -> Tensor:
        """The boxes as float32 [N, 4] fractions of the stored images; ``sizes`` int64 [count, 2] of the whole store."""
        return (self.boxes.double() / sizes[self.sample_ids].repeat(1, 2)).float()


@dataclass(frozen=True)
class SamplePlan:
    """Everything that decides which pixels a loader delivers, a pure function of (seed, epoch, sample_id).

    size              side of the delivered crops in pixels
    batch_size        samples per process and step
    train             False: whole images in store order, every image once, bilinear as the reference evaluates
    scale, ratio      range of a crop's share of the image's area, and of its width / height
    flip              probability of a mirror image, or alternating (``draw_flips``)
    interpolation     how training crops are resized: bicubic or bilinear
    drop_last         leave the last partial training batch out, as the reference does
    rank, world_size  this process among those that share every step
    """

    size: int
    batch_size: int
    train: bool
    seed: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float | str = 0.5
    interpolation: str = "bicubic"
    drop_last: bool = True
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        for name in ("size", "batch_size", "world_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank} must be 0 to {self.world_size - 1} (world_size={self.world_size})")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={self.interpolation!r}; choose one of {', '.join(INTERPOLATIONS)}")

    @property
    def resample(self) -> str:
        """The interpolation in use."""
        return self.interpolation if self.train else "bilinear"

    def slices(self, count: int) -> list[slice]:
        """This process's batches of an epoch over ``count`` samples, as slices into ``order``.

        Raises:
            UserError: there are fewer samples than processes.
        """
        if count < self.world_size:
            raise UserError(f"{count} images cannot be shared by {self.world_size} processes; start at most {count}")
        return rank_batches(
            count,
            self.batch_size,
            train=self.train,
            drop_last=self.drop_last,
            rank=self.rank,
            world_size=self.world_size,
        )

    def step_total(self, count: int, step: int) -> int:
        """Samples that all processes together train on at a 0-based step of an epoch over ``count``."""
        together = self.batch_size * self.world_size
        return min(together, count - step * together)

    def order(self, count: int, epoch: int) -> Tensor:
        """Sample ids in the order the epoch visits them, int64 [count]."""
        return epoch_order(self.seed, epoch, count) if self.train else torch.arange(count)

    def draw(self, sample_ids: Tensor, sizes: Tensor, epoch: int) -> Draw:
        """Boxes and flips of the given samples; ``sizes`` int64 [count, 2] of the whole store."""
        own = sizes[sample_ids]
        if not self.train:
            boxes = torch.cat([torch.zeros_like(own), own], dim=1)
            return Draw(sample_ids, boxes, torch.zeros(len(sample_ids), dtype=torch.bool))
        boxes = draw_crops(self.seed, epoch, sample_ids, own, scale=self.scale, ratio=self.ratio)
        return Draw(sample_ids, boxes, draw_flips(self.seed, epoch, sample_ids, self.flip))

    def blocks(self, sizes: Tensor, epoch: int, start_batch: int = 0) -> Iterator[tuple[Draw, list[int]]]:
        """Many batches at a time, from ``start_batch`` on: what they draw, and the samples in each of them."""
        order, slices = self.order(len(sizes), epoch), self.slices(len(sizes))
        count = max(1, _BLOCK_SAMPLES // self.batch_size)
        for first in range(start_batch, len(slices), count):
            block = slices[first : first + count]
            yield self.draw(torch.cat([order[s] for s in block]), sizes, epoch), [s.stop - s.start for s in block]

    def batches(self, sizes: Tensor, epoch: int, start_batch: int = 0) -> Iterator[Draw]:
        """All batches of this process from ``start_batch`` on."""
        for drawn, counts in self.blocks(sizes, epoch, start_batch):
            yield from map(Draw, *(tensor.split(counts) for tensor in drawn))
