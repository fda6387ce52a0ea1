"""What several corruptions are made of: linear filters as one matrix per axis, motion, bilinear sampling.

Images are float32 [N, H, W, 3] from 0 to 1. Each function is what the authors' code has of scipy, scikit-image, OpenCV,
Pillow or ImageMagick, for a batch at once; named where it differs by more than rounding.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_ROUNDED = 1e-3  # of a level: what lies on one in exact arithmetic does not fall below it in float32


def to_bytes(images: Tensor) -> Tensor:
    """0..1 -> uint8, cut off as numpy's uint8() does."""
    return images.clamp(0, 1).mul(255).add_(_ROUNDED).to(torch.uint8)


def along_both(images: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
    """[N, H, W, C], matrices [h, H] and [w, W] (None: the same) -> [N, h, w, C]."""
    columns = rows if columns is None else columns
    return (rows @ images.permute(0, 3, 1, 2) @ columns.T).permute(0, 2, 3, 1)


def gaussian_matrix(side: int, sigma: float, *, border: str, truncate: float) -> Tensor:
    """[side, side]: scipy's Gaussian filter along one axis; ``border`` is reflect (d c b a | a b c d) or nearest."""
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / max(sigma, 1e-12)) ** 2)
    weights /= weights.sum()
    places = np.arange(side)[:, None] + offsets
    if border == "nearest":
        places = places.clip(0, side - 1)
    else:
        places = places % (2 * side)
        places = np.where(places >= side, 2 * side - 1 - places, places)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.broadcast_to(np.arange(side)[:, None], places.shape), places), weights)
    return torch.from_numpy(matrix).float()


def zoomed(images: Tensor, factor: float) -> Tensor:
    """The middle 1 / ``factor`` enlarged to the whole, linear, first and last pixel kept, as scipy's zoom does."""
    side = images.shape[1]
    inside = math.ceil(side / factor)
    first, whole = (side - inside) // 2, round(inside * factor)
    cut = (whole - side) // 2
    planes = images.permute(0, 3, 1, 2)[:, :, first : first + inside, first : first + inside]
    planes = F.interpolate(planes, size=(whole, whole), mode="bilinear", align_corners=True)
    return planes[:, :, cut : cut + side, cut : cut + side].permute(0, 2, 3, 1)


def box_matrix(out: int, side: int) -> Tensor:
    """[out, side]: Pillow's BOX resize of one axis."""
    scale = side / out
    support = max(scale, 1.0) / 2
    matrix = np.zeros((out, side))
    for row in range(out):
        centre = (row + 0.5) * scale
        low, high = max(0, int(centre - support + 0.5)), min(side, int(centre + support + 0.5))
        at = (np.arange(low, high) + 0.5 - centre) / max(scale, 1.0)
        matrix[row, low:high] = (at > -0.5) & (at <= 0.5)
    return torch.from_numpy(matrix / matrix.sum(axis=1, keepdims=True)).float()


def disk(radius: float, alias_blur: float) -> Tensor:
    """[K, K] of sum 1: a disk whose rim a small Gaussian smooths, as OpenCV does with that standard deviation."""
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    line = np.arange(-reach, reach + 1)
    whole = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    whole /= whole.sum()
    offsets = np.arange(taps) - taps // 2
    weights = np.exp(-(offsets**2) / (2 * alias_blur**2))
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(whole, [(taps // 2,) * 2 if axis == own else (0, 0) for own in (0, 1)], mode="reflect")
        parts = [weight * padded.take(range(tap, tap + len(line)), axis) for tap, weight in enumerate(weights)]
        whole = np.sum(parts, axis=0)
    return torch.from_numpy(whole).float()


def filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlation with [K, K], the border mirrored about the outermost pixels (OpenCV's default)."""
    reach = kernel.shape[0] // 2
    planes = images.permute(0, 3, 1, 2)
    planes = planes[:, :, mirrored(planes.shape[2], reach)][:, :, :, mirrored(planes.shape[3], reach)]
    count, channels = planes.shape[:2]
    found = F.conv2d(planes.reshape(count * channels, 1, *planes.shape[2:]), kernel.to(images.device)[None, None])
    return found.reshape(count, channels, *found.shape[2:]).permute(0, 2, 3, 1)


def mirrored(side: int, reach: int) -> Tensor:
    """int64 [side + 2 reach]: where a pixel beyond the border lies; d c b | a b c d, however far."""
    period = max(2 * (side - 1), 1)
    places = torch.arange(-reach, side + reach) % period
    return torch.where(places >= side, period - places, places)


def moved(images: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Motion along ``degrees`` [N], ImageMagick's: half a Gaussian of 2 radius + 1 whole pixels, borders continued."""
    count, height, width = images.shape[:3]
    taps = 2 * radius + 1
    weights = torch.exp(-(torch.arange(taps, dtype=torch.float64) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).tolist()
    angle = torch.deg2rad(degrees.double())
    across, down = angle.cos(), angle.sin()
    numbers = torch.arange(count, device=images.device)[:, None, None]
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    total = torch.zeros_like(images)
    for tap, weight in enumerate(weights):
        dx, dy = (torch.ceil(tap * part - 0.5).long() for part in (across, down))
        y = (rows + dy[:, None]).clamp(0, height - 1)[:, :, None]
        x = (columns + dx[:, None]).clamp(0, width - 1)[:, None, :]
        total += weight * images[numbers, y, x]
    return total


def sampled(images: Tensor, y: Tensor, x: Tensor, *, is_symmetric: bool) -> Tensor:
    """Bilinear values at pixel coordinates ``y``, ``x`` [N, H, W]. Beyond the border the image is mirrored: about the
    outer edge of its last pixels (``is_symmetric``), or about their middle."""
    height, width = images.shape[1:3]
    if is_symmetric:
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    else:
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    planes = images.permute(0, 3, 1, 2)
    found = F.grid_sample(planes, grid.to(images.dtype), padding_mode="reflection", align_corners=not is_symmetric)
    return found.permute(0, 2, 3, 1)
