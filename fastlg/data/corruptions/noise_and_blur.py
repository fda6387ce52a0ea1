"""Noise: Gaussian, shot, impulse. Blur: defocus, frosted glass, motion, zoom."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlg.data.corruptions.draws import Draws
from fastlg.data.corruptions.filters import (
    along_both,
    disk,
    filtered,
    gaussian_matrix,
    moved,
    to_bytes,
    zoomed,
)


def gaussian_noise(images: Tensor, own: float, draws: Draws) -> Tensor:
    return images + own * draws.normal(images.shape[1:])


def shot_noise(images: Tensor, own: float, draws: Draws) -> Tensor:
    """Poisson numbers of photons, by the inverse of their distribution: a byte is one of 256 brightnesses."""
    levels = torch.arange(256, dtype=torch.float64, device=images.device) / 255 * own
    most = int(own + 12 * math.sqrt(own) + 12)  # more photons than that come once in 1e25 pixels
    counts = torch.arange(most, dtype=torch.float64, device=images.device)
    chances = torch.exp(torch.xlogy(counts, levels[:, None]) - levels[:, None] - torch.lgamma(counts + 1))
    steps = chances.cumsum(dim=1).clamp(max=1.0)
    steps[:, -1] = 1.0
    rising = (steps + torch.arange(256, dtype=torch.float64, device=images.device)[:, None]).flatten()
    bytes_ = (images * 255).round().long()
    place = torch.searchsorted(rising, bytes_ + draws.uniform(images.shape[1:]), right=True)
    return ((place - bytes_ * most) / own).float()


def impulse_noise(images: Tensor, own: float, draws: Draws) -> Tensor:
    struck, is_salt = draws.uniform(images.shape[1:]) < own, draws.uniform(images.shape[1:]) < 0.5
    return torch.where(struck, is_salt.to(images.dtype), images)


def defocus_blur(images: Tensor, own: tuple, draws: Draws) -> Tensor:
    return filtered(images, disk(*own))


def glass_blur(images: Tensor, own: tuple, draws: Draws) -> Tensor:
    """Blurred, its pixels taken from places near by, one after another, and blurred again."""
    sigma, farthest, rounds = own
    side = images.shape[1]
    blur = gaussian_matrix(side, sigma, border="nearest", truncate=4.0).to(images.device)
    values = to_bytes(along_both(images, blur))
    for _ in range(rounds):
        values = _taken_near_by(values, farthest, draws)
    return along_both(values / 255.0, blur)


def _taken_near_by(values: Tensor, farthest: int, draws: Draws) -> Tensor:
    """From the last pixel to the first, each takes the value that a neighbour has by then.

    The authors meant to swap the two, but their line copies (what numpy unpacks there are views), and so were the
    published images made. The neighbours lie from -farthest to farthest - 1 rows and columns away. Where one was
    rewritten before, its own source is what counts: chains of pointers, followed by doubling.
    """
    count, height, width = values.shape[:3]
    place = torch.arange(height * width, device=values.device)
    row, column = place // width, place % width
    is_inner = (row > farthest) & (row <= height - farthest) & (column > farthest) & (column <= width - farthest)
    dx, dy = ((draws.uniform((height * width,)) * 2 * farthest).long() - farthest for _ in range(2))
    source = torch.where(is_inner, place + dy * width + dx, place)
    is_rewritten = (source > place) & is_inner[source]  # by then
    following = torch.where(is_rewritten, source, place)
    for _ in range(math.ceil(math.log2(height * width))):
        following = following.gather(1, following)
    origin = source.gather(1, following)
    flat = values.reshape(count, height * width, 3)
    return flat.gather(1, origin[:, :, None].expand(-1, -1, 3)).reshape(values.shape)


def motion_blur(images: Tensor, own: tuple, draws: Draws) -> Tensor:
    radius, sigma = own
    degrees = draws.uniform(()) * 90 - 45
    return moved(images, radius, sigma, degrees).mul(255).round() / 255  # ImageMagick gives whole levels


def zoom_blur(images: Tensor, own: Tensor, draws: Draws) -> Tensor:
    total = images.clone()
    for factor in own:
        total += zoomed(images, float(factor))
    return total / (len(own) + 1)
