"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch with itself reversed, as timm's mode "elem".

Not timm's Mixup itself: it draws on the host from NumPy's global generator, batch by batch, so that a sample's mix
would depend on batch, rank and resume, and be copied to the device in every step. Tests compare with it.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlg_kernels.rng import sample_seeds, uniforms

QUANTILES = 1 << 16  # resolution of the Beta distribution's quantile table


class Mix(NamedTuple):
    """How row i is mixed with row N - 1 - i.

    share   float32 [N]: what row i keeps of itself
    box     float32 [N, 4]: top, bottom, left, right of the pasted rectangle as fractions; all 0 for mixup and for none
    """

    share: Tensor
    box: Tensor

    def rows(self, index: Tensor) -> Mix:
        return Mix(*(part.index_select(0, index) for part in self))


class Mixer:
    """Draws and applies mixup or CutMix. Off (``active`` False) when both alphas are 0.

    mixup, cutmix   alphas of their Beta(alpha, alpha); with both, each sample takes CutMix with probability ``switch``
    probability     of mixing a sample at all

    A sample's draw is a pure function of (seed, epoch, sample_id); its partner is whoever stands at the mirrored place
    of its batch.
    """

    def __init__(self, *, mixup: float, cutmix: float, probability: float, switch: float, seed: int):
        self.active = (mixup > 0 or cutmix > 0) and probability > 0
        self.probability, self.seed = probability, seed
        self.switch = switch if mixup > 0 and cutmix > 0 else float(cutmix > 0)
        tables = [_beta_quantiles(alpha or cutmix or mixup or 1.0) for alpha in (mixup, cutmix)]
        self.tables_of = cache(lambda device: [table.to(device) for table in tables])

    def draw(self, sample_ids: Tensor, epoch: int, size: int) -> Mix:
        """For images of ``size`` x ``size`` px; boxes have whole pixels, clipped at the border as timm does."""
        seeds = sample_seeds(self.seed, epoch, sample_ids, "mix")
        apply, which, quantile, row, column = uniforms(seeds, 5).unbind(1)
        is_mixed, is_cut = apply < self.probability, which < self.switch
        mixup, cutmix = (table[(quantile * QUANTILES).long()] for table in self.tables_of(sample_ids.device))
        side = (size * (1 - cutmix).sqrt()).long()  # of the rectangle before clipping
        edges = []
        for centre in ((row * size).long(), (column * size).long()):
            edges += [(centre - side // 2).clamp(0, size), (centre + (side + 1) // 2).clamp(0, size)]
        box = torch.stack(edges, 1) * (is_mixed & is_cut)[:, None]
        area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
        share = torch.where(is_cut, 1 - area.double() / size**2, mixup)
        share = torch.where(is_mixed, share, torch.ones_like(share))
        return Mix(share.float(), box.float() / size)


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """images float [N, 3, S, S], normalised; the same ``mix`` fits every S."""
    partner = images.flip(0)
    centre = (torch.arange(images.shape[-1], device=images.device) + 0.5) / images.shape[-1]
    top, bottom, left, right = mix.box[:, :, None].unbind(1)
    rows, columns = (centre >= top) & (centre < bottom), (centre >= left) & (centre < right)
    pasted = rows[:, None, :, None] & columns[:, None, None, :]
    is_cut = (mix.box[:, 1] > 0)[:, None, None, None]
    share = mix.share.to(images.dtype)[:, None, None, None]
    keep = torch.where(is_cut, (~pasted).to(images.dtype), share)
    return partner + keep * (images - partner)


def mix_targets(labels: Tensor, mix: Mix, num_classes: int) -> Tensor:
    """Class probabilities float32 [N, num_classes]: ``share`` for a row's own label, the rest for its partner's."""
    targets = torch.zeros(len(labels), num_classes, device=labels.device)
    targets.scatter_add_(1, labels[:, None], mix.share[:, None])
    return targets.scatter_add_(1, labels.flip(0)[:, None], 1 - mix.share[:, None])


def _beta_quantiles(alpha: float) -> Tensor:
    """Quantiles of Beta(alpha, alpha) as a sorted sample: torch has no inverse of its distribution function."""
    return torch.from_numpy(np.sort(np.random.default_rng(0).beta(alpha, alpha, QUANTILES)))
