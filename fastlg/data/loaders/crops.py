"""Crop boxes, flips and the order of an epoch: pure functions of (seed, epoch, sample_id).

Every loader takes them from here, so loaders differ in speed and not in what the student sees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlg_kernels.rng import sample_seeds, uniforms

ATTEMPTS = 10  # torchvision's and timm's: then the centre crop


def draw_crops(
    seed: int,
    epoch: int,
    sample_ids: Tensor,
    sizes: Tensor,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Random resized crop boxes, distributed as timm's RandomResizedCropAndInterpolation.get_params draws them.

    Args:
        sample_ids: int64 [N], CPU.
        sizes: int64 [N, 2], height and width of each image in pixels.
        scale: range of the box's share of the image's area.
        ratio: range of the box's width / height; its logarithm is uniform.

    Returns:
        int64 [N, 4]: y, x, height, width in source pixels.
    """
    seeds = sample_seeds(seed, epoch, sample_ids, "crop")
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


def draw_flips(seed: int, epoch: int, sample_ids: Tensor, flip: float | str = 0.5) -> Tensor:
    """Which samples are mirrored, bool [N]: each with probability ``flip``, or ``alternating``.

    That is every second epoch, one half of the samples in the even ones and the other half in the odd ones (K. Jordan,
    arXiv 2404.00498): two epochs show both sides of every image, where independent draws repeat one in half the cases.
    """
    if flip == "alternating":
        is_first = uniforms(sample_seeds(seed, 0, sample_ids, "flip"), 1)[:, 0] < 0.5
        return is_first ^ bool(epoch % 2)
    return uniforms(sample_seeds(seed, epoch, sample_ids, "flip"), 1)[:, 0] < flip


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
