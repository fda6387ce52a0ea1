"""How strong each corruption is at severities 1 to 5, as published: Hendrycks and Dietterich, "Benchmarking Neural
Network Robustness to Common Corruptions and Perturbations", ICLR 2019 (arXiv 1903.12261).

The authors made three sets, each with strengths for its image size: CIFAR-10-C at 32 px, Tiny-ImageNet-C at 64 px,
ImageNet-C at 224 px. Radii and distances are pixels; at another size the set whose own is nearest, by ratio, is taken.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
NAMES = tuple(name for group in GROUPS.values() for name in group)
SEVERITIES = (1, 2, 3, 4, 5)


class Strengths(NamedTuple):
    """One of the published sets: ``side``, the image size that it was made for, and per corruption five entries.

    gaussian_noise     standard deviation, of pixels from 0 to 1
    shot_noise         photons that white stands for
    impulse_noise      share of the values that become 0 or 1
    defocus_blur       (radius of the disk, standard deviation of the blur that smooths its rim), px
    glass_blur         (standard deviation of the blur before and after, px; farthest a pixel is taken from, px; rounds)
    motion_blur        (radius, standard deviation), px
    zoom_blur          factors that are averaged, the image itself beside them
    snow               (mean, deviation and zoom of the flakes' noise; below which there is none; radius and deviation
                       of their motion, px; how much of the image is left unwhitened)
    frost              (share of the image, share of the photograph)
    frost_zoom         one number: how much the photographs are shrunk before a piece is cut out
    fog                (strength, how fast the finer parts of its fractal fade)
    brightness         added to the value of HSV
    contrast           factor of the distance to each channel's mean
    elastic_transform  (displacement, its smoothness, shift of the corners), each a share of the side
    pixelate           share of the side that is left
    jpeg_compression   quality
    """

    name: str
    side: int
    gaussian_noise: tuple
    shot_noise: tuple
    impulse_noise: tuple
    defocus_blur: tuple
    glass_blur: tuple
    motion_blur: tuple
    zoom_blur: tuple
    snow: tuple
    frost: tuple
    frost_zoom: float
    fog: tuple
    brightness: tuple
    contrast: tuple
    elastic_transform: tuple
    pixelate: tuple
    jpeg_compression: tuple


def _zooms(*pairs: tuple[float, float]) -> tuple[np.ndarray, ...]:
    return tuple(np.arange(1, stop, step) for stop, step in pairs)


_SMALL_ZOOMS = _zooms((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
_SMALL_SNOW = (
    (0.1, 0.2, 1, 0.6, 8, 3),
    (0.1, 0.2, 1, 0.5, 10, 4),
    (0.15, 0.3, 1.75, 0.55, 10, 4),
    (0.25, 0.3, 2.25, 0.6, 12, 6),
    (0.3, 0.3, 1.25, 0.65, 14, 12),
)
_WIDE = 244 / 224  # the authors' slip in ImageNet-C, which is part of it

SETS = (
    Strengths(
        name="CIFAR-10-C",
        side=32,
        gaussian_noise=(0.04, 0.06, 0.08, 0.09, 0.10),
        shot_noise=(500, 250, 100, 75, 50),
        impulse_noise=(0.01, 0.02, 0.03, 0.05, 0.07),
        defocus_blur=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        glass_blur=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        motion_blur=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        zoom_blur=_SMALL_ZOOMS,
        snow=tuple((*own, left) for own, left in zip(_SMALL_SNOW, (0.95, 0.9, 0.9, 0.85, 0.8), strict=True)),
        frost=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        frost_zoom=0.2,
        fog=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        brightness=(0.05, 0.1, 0.15, 0.2, 0.3),
        contrast=(0.75, 0.5, 0.4, 0.3, 0.15),
        elastic_transform=((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        pixelate=(0.95, 0.9, 0.85, 0.75, 0.65),
        jpeg_compression=(80, 65, 58, 50, 40),
    ),
    Strengths(
        name="Tiny-ImageNet-C",
        side=64,
        gaussian_noise=(0.04, 0.08, 0.12, 0.15, 0.18),
        shot_noise=(250, 100, 50, 30, 15),
        impulse_noise=(0.01, 0.02, 0.05, 0.08, 0.14),
        defocus_blur=((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        glass_blur=((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        motion_blur=((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        zoom_blur=_SMALL_ZOOMS,
        snow=tuple((*own, left) for own, left in zip(_SMALL_SNOW, (0.8, 0.8, 0.7, 0.65, 0.6), strict=True)),
        frost=((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        frost_zoom=0.3,
        fog=((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        brightness=(0.1, 0.2, 0.3, 0.4, 0.5),
        contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
        elastic_transform=((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        pixelate=(0.9, 0.8, 0.7, 0.6, 0.5),
        jpeg_compression=(65, 58, 50, 40, 25),
    ),
    Strengths(
        name="ImageNet-C",
        side=224,
        gaussian_noise=(0.08, 0.12, 0.18, 0.26, 0.38),
        shot_noise=(60, 25, 12, 5, 3),
        impulse_noise=(0.03, 0.06, 0.09, 0.17, 0.27),
        defocus_blur=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        glass_blur=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        motion_blur=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        zoom_blur=_zooms((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        snow=(
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        frost=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        frost_zoom=1.0,
        fog=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        brightness=(0.1, 0.2, 0.3, 0.4, 0.5),
        contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
        elastic_transform=tuple(
            tuple(part * _WIDE for part in own)
            for own in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        pixelate=(0.6, 0.5, 0.4, 0.3, 0.25),
        jpeg_compression=(25, 18, 15, 10, 7),
    ),
)


def strengths_for(side: int) -> Strengths:
    """The published set for images of ``side`` px: its own, or that of the nearest size by ratio."""
    return min(SETS, key=lambda own: abs(math.log(own.side / side)))
