"""Which pixels a loader delivers, whichever loader it is: order, batches, crop boxes and flips.

All of it is a pure function of (seed, epoch, sample_id), so loaders differ in speed and not in what the student sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastlg.errors import UserError
from fastlg_kernels.rng import sample_seeds, uniforms

INTERPOLATIONS = ("bicubic", "bilinear")
ATTEMPTS = 10  # at a crop that fits, torchvision's and timm's: then the centre crop
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
    crops, first_crop  how many crops of a training sample follow each other in a batch, each with draws of its own,
                      and the number of the first among all the crops of it that there are
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
    crops: int = 1
    first_crop: int = 0

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
        """Boxes and flips of the given samples, of each its ``crops`` in a row; ``sizes`` int64 [count, 2] of the whole
        store."""
        own = sizes[sample_ids]
        if not self.train:
            boxes = torch.cat([torch.zeros_like(own), own], dim=1)
            return Draw(sample_ids, boxes, torch.zeros(len(sample_ids), dtype=torch.bool))
        numbers = range(self.first_crop, self.first_crop + self.crops)
        given = self.seed, epoch, sample_ids
        boxes = [draw_crops(*given, own, scale=self.scale, ratio=self.ratio, number=number) for number in numbers]
        flips = [draw_flips(*given, self.flip, number=number) for number in numbers]
        return Draw(
            sample_ids.repeat_interleave(self.crops),
            torch.stack(boxes, dim=1).flatten(0, 1),
            torch.stack(flips, dim=1).flatten(),
        )

    def blocks(self, sizes: Tensor, epoch: int, start_batch: int = 0) -> Iterator[tuple[Draw, list[int]]]:
        """Many batches at a time, from ``start_batch`` on: what they draw, and the samples in each of them."""
        order, slices = self.order(len(sizes), epoch), self.slices(len(sizes))
        count = max(1, _BLOCK_SAMPLES // self.batch_size)
        for first in range(start_batch, len(slices), count):
            block = slices[first : first + count]
            each = self.crops if self.train else 1
            counts = [each * (s.stop - s.start) for s in block]
            yield self.draw(torch.cat([order[s] for s in block]), sizes, epoch), counts

    def batches(self, sizes: Tensor, epoch: int, start_batch: int = 0) -> Iterator[Draw]:
        """All batches of this process from ``start_batch`` on."""
        for drawn, counts in self.blocks(sizes, epoch, start_batch):
            yield from map(Draw, *(tensor.split(counts) for tensor in drawn))


def draw_crops(
    seed: int,
    epoch: int,
    sample_ids: Tensor,
    sizes: Tensor,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    number: int = 0,
) -> Tensor:
    """Random resized crop boxes, distributed as timm's RandomResizedCropAndInterpolation.get_params draws them.

    Args:
        sample_ids: int64 [N], CPU.
        sizes: int64 [N, 2], height and width of each image in pixels.
        scale: range of the box's share of the image's area.
        ratio: range of the box's width / height; its logarithm is uniform.
        number: which of a sample's crops, where it has several.

    Returns:
        int64 [N, 4]: y, x, height, width in source pixels.
    """
    seeds = sample_seeds(seed, epoch, sample_ids, _purpose("crop", number))
    height, width = sizes.double().unbind(1)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    boxes = _centre_crops(height, width, ratio)
    rows = torch.arange(len(sample_ids))  # those still without a box
    for attempt in range(ATTEMPTS):
        u = uniforms(seeds[rows], 4, offset=4 * attempt).double()
        h_image, w_image = height[rows], width[rows]
        area = h_image * w_image * (scale[0] + (scale[1] - scale[0]) * u[:, 0])
        aspect = torch.exp(low + (high - low) * u[:, 1])
        w, h = torch.round(torch.sqrt(area * aspect)), torch.round(torch.sqrt(area / aspect))
        fits = (w >= 1) & (h >= 1) & (w <= w_image) & (h <= h_image)
        y = torch.floor(u[:, 2] * (h_image - h + 1))
        x = torch.floor(u[:, 3] * (w_image - w + 1))
        boxes[rows[fits]] = torch.stack([y, x, h, w], dim=1)[fits].long()
        rows = rows[~fits]
        if len(rows) == 0:
            break
    return boxes


def _centre_crops(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> Tensor:
    """The largest centred box whose width / height lies in ``ratio``, as torchvision falls back to; int64 [N, 4]."""
    shape = width / height
    h = torch.where(shape < min(ratio), torch.round(width / min(ratio)), height)
    w = torch.where(shape > max(ratio), torch.round(height * max(ratio)), width)
    return torch.stack([torch.floor((height - h) / 2), torch.floor((width - w) / 2), h, w], dim=1).long()


def draw_flips(seed: int, epoch: int, sample_ids: Tensor, flip: float | str = 0.5, *, number: int = 0) -> Tensor:
    """Which samples are mirrored, bool [N]: each with probability ``flip``, or ``alternating``.

    That is every second epoch, one half of the samples in the even ones and the other half in the odd ones (K. Jordan,
    arXiv 2404.00498): two epochs show both sides of every image, where independent draws repeat one in half the cases.
    ``number`` as in ``draw_crops``.
    """
    purpose = _purpose("flip", number)
    if flip == "alternating":
        is_first = uniforms(sample_seeds(seed, 0, sample_ids, purpose), 1)[:, 0] < 0.5
        return is_first ^ bool(epoch % 2)
    return uniforms(sample_seeds(seed, epoch, sample_ids, purpose), 1)[:, 0] < flip


def _purpose(what: str, number: int) -> str:
    """Of the seeds of a sample's ``number``-th crop."""
    return f"{what} {number}" if number else what


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which an epoch visits the samples: a permutation of 0..count-1, int64.

    Samples are sorted by a random 63-bit key each, which no version of any library changes.
    """
    keys = sample_seeds(seed, epoch, torch.arange(count), "order")
    return torch.argsort(keys, stable=True)


def rank_batches(
    count: int, batch_size: int, *, train: bool, drop_last: bool = True, rank: int = 0, world_size: int = 1
) -> list[slice]:
    """Which part of an epoch's order process ``rank`` takes at each step.

    One step of all processes together takes ``batch_size * world_size`` consecutive samples, so the samples of a step
    do not depend on how many processes share it. No sample is taken twice. In training all processes take equally many
    steps; the remainder of the epoch is left out (``drop_last``) or shared as a smaller last step. A set smaller than
    one step is always one smaller step. In evaluation nothing is left out, and a process may take one step fewer.

    Args:
        batch_size: samples per process and step.

    Returns:
        Slices into the order, one per step, none empty.
    """
    step = batch_size * world_size
    whole = count // step
    slices = [slice(i * step + rank * batch_size, i * step + (rank + 1) * batch_size) for i in range(whole)]
    rest = count - whole * step
    if rest and not (train and drop_last and whole) and not (train and rest < world_size):
        start, stop = (whole * step + rest * r // world_size for r in (rank, rank + 1))
        if stop > start:
            slices.append(slice(start, stop))
    return slices
