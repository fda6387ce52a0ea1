"""What the two networks of a run without labels see: every crop changed by itself, as DINO's code does.

Source: Caron et al. 2021 (arXiv 2104.14294) as Gani et al. 2022 (arXiv 2210.07240) take it over: mirror, colour jitter
(0.4, 0.4, 0.2, 0.1) in 80 % of the crops, grey in 20 %, then blur with a radius from 0.1 to 2 px and solarisation, of
which the first large crop, the second and the small ones have shares of their own. Pixels are Pillow's, but for hue,
which is turned before the rest of the jitter and without Pillow's rounding to 256 hues; there it is one of four changes
in random order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlg.batch import Batch, CropsBatch, CropViews, Views
from fastlg.data.views.make import ViewMaker
from fastlg_kernels.augment.rand_augment import OP_NAMES, draw_color_jitter
from fastlg_kernels.augment.views import ViewDraw, train_views
from fastlg_kernels.rng import sample_seeds, uniforms

JITTER, HUE = (0.4, 0.4, 0.2), 0.1  # of brightness, contrast and saturation; of hue, in turns
JITTERED, GREY = 0.8, 0.2  # share of the crops
BLURRED, SOLARISED = (1.0, 0.1, 0.5), (0.0, 0.2, 0.0)  # of the first large crop, the second, and the small ones
RADIUS_PX = (0.1, 2.0)
THRESHOLD = 128.0  # from which on solarisation inverts
DESATURATE, BLUR, SOLARIZE = (OP_NAMES.index(name) for name in ("Desaturate", "GaussianBlur", "Solarize"))


class CropViewMaker:
    """CropsBatch -> CropViews in training; of a Batch what ``plain`` makes of it, which is how such runs are tested.

    A crop's view is a pure function of (seed, epoch, sample_id, number of the crop). ``mean``, ``std`` and ``dtype`` as
    in ViewMaker.
    """

    student_size = None

    def __init__(
        self,
        plain: ViewMaker,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        dtype: torch.dtype = torch.float32,
    ):
        self.plain, self.mean, self.std, self.seed, self.dtype = plain, tuple(mean), tuple(std), seed, dtype

    def __call__(self, batch: CropsBatch | Batch, epoch: int, train: bool = True) -> CropViews | Views:
        if not train:
            return self.plain(batch, epoch, train=False)
        large = self._group(batch, batch.images, 0, epoch)
        small = large.new_empty(len(large), 0, 3, 1, 1)
        if batch.small.shape[1]:
            small = self._group(batch, batch.small, batch.images.shape[1], epoch)
        return CropViews(large, large, small, batch.labels)

    def _group(self, batch: CropsBatch, images: Tensor, first: int, epoch: int) -> Tensor:
        """images uint8 [N, V, S, S, 3], the crops from number ``first`` on -> float [N, V, 3, S, S]."""
        ids, count = batch.sample_ids.to(images.device), images.shape[1]
        numbers = range(first, first + count)

        def seeds(purpose: str) -> Tensor:
            own = [sample_seeds(self.seed, epoch, ids, f"{purpose} {number}") for number in numbers]
            return torch.stack(own, dim=1).flatten()

        shares = [torch.tensor([each[min(number, 2)] for number in numbers]) for each in (BLURRED, SOLARISED)]
        shares = [share.to(images.device, torch.float64).repeat(len(ids)) for share in shares]
        flip = batch.flip[:, first : first + count].flatten()
        changed = changed_crops(
            images.flatten(0, 1), seeds("view"), seeds("view jitter"), *shares, flip, self.mean, self.std, self.dtype
        )
        return changed.unflatten(0, (-1, count))


def changed_crops(
    images: Tensor,
    seeds: Tensor,
    jitter_seeds: Tensor,
    blurred: Tensor,
    solarised: Tensor,
    flip: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """uint8 [M, S, S, 3] -> ``dtype`` [M, 3, S, S], normalised: one crop each, changed by its own seeds.

    blurred, solarised  float64 [M]: how likely each is
    flip                bool [M]
    """
    drawn = uniforms(seeds, 6)
    is_jittered = drawn[:, 0] < JITTERED
    turns = torch.where(is_jittered, HUE * (2 * drawn[:, 5] - 1), 0.0)
    jitter = draw_color_jitter(jitter_seeds, JITTER)
    radius = RADIUS_PX[0] + (RADIUS_PX[1] - RADIUS_PX[0]) * drawn[:, 3]
    own = torch.tensor([DESATURATE, BLUR, SOLARIZE], device=images.device).expand(len(images), 3)
    applied = torch.stack((drawn[:, 1] < GREY, drawn[:, 2] < blurred, drawn[:, 4] < solarised), dim=1)
    values = torch.stack((torch.ones_like(radius), radius, torch.full_like(radius, THRESHOLD)), dim=1)
    draw = ViewDraw(
        torch.cat((jitter.op, own), dim=1).to(torch.int32),
        torch.cat((jitter.applied & is_jittered[:, None], applied), dim=1),
        torch.cat((jitter.value, values), dim=1),
        seeds.new_empty(len(seeds), 0, 4, dtype=torch.int32),
        seeds,
        tuple(images.shape[1:3]),
        True,
    )
    return train_views(hue_turned(images, turns), None, None, mean, std, flip=flip, draw=draw, dtype=dtype)[0]


def hue_turned(images: Tensor, turns: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> the same, each image's hue turned by a share ``turns`` [N] of the circle; where that is 0
    the image stays as it is."""
    colours = images.to(torch.float32)
    top, low = colours.amax(dim=3), colours.amin(dim=3)
    spread = top - low
    red, green, blue = colours.unbind(3)
    by = spread.clamp(min=1.0)
    hue = torch.where(top == green, 2 + (blue - red) / by, 4 + (red - green) / by)
    hue = torch.where(top == red, (green - blue) / by, hue) + 6 * turns.to(torch.float32)[:, None, None]
    place = torch.tensor([5.0, 3.0, 1.0], device=images.device)  # of red, green and blue on the circle
    along = (hue[..., None] + place).remainder(6.0)
    share = torch.minimum(along, 4 - along).clamp(0.0, 1.0)
    turned = (top[..., None] - spread[..., None] * share).round().to(torch.uint8)
    return torch.where((turns == 0)[:, None, None, None], images, turned)
