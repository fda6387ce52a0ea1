"""A corruption, of a batch of images."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlg.data.corruptions import digital, noise_and_blur, weather
from fastlg.data.corruptions.draws import Draws
from fastlg.data.corruptions.filters import to_bytes
from fastlg.data.corruptions.strengths import NAMES, SEVERITIES, strengths_for

SMALLEST = 16  # px
VERSION = 1  # of what comes out: what was measured with another is measured anew
_OF = {
    **{name: getattr(noise_and_blur, name) for name in ("gaussian_noise", "shot_noise", "impulse_noise")},
    **{name: getattr(noise_and_blur, name) for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")},
    **{name: getattr(weather, name) for name in ("snow", "frost", "fog", "brightness")},
    **{name: getattr(digital, name) for name in ("contrast", "elastic_transform", "pixelate", "jpeg_compression")},
}


@torch.inference_mode()
def corrupt(images: Tensor, sample_ids: Tensor, name: str, severity: int) -> Tensor:
    """``images`` with one of NAMES at a severity from 1 to 5, by the published strengths for their size.

    images      uint8 [N, S, S, 3], squares of at least 16 px
    sample_ids  int64 [N]: what is random is a pure function of (name, severity, sample), whatever the batch

    Returns uint8 [N, S, S, 3] on the images' device. Raises ValueError for others, UserError where the photographs of
    frost are not installed. Source: arXiv 1903.12261 and its authors' scripts; strengths.py, filters.py.
    """
    if name not in NAMES or severity not in SEVERITIES:
        raise ValueError(f"corruption {name!r} at severity {severity!r}; one of {', '.join(NAMES)}, 1 to 5")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; they have to be uint8 [N, S, S, 3]")
    if images.shape[1] < SMALLEST:
        raise ValueError(f"images are {images.shape[1]} px; corruptions are meant for {SMALLEST} px and more")
    own = strengths_for(images.shape[1])
    strength = getattr(own, name)[severity - 1]
    draws = Draws(name, severity, sample_ids.to(images.device))
    more = (own.frost_zoom,) if name == "frost" else ()
    return to_bytes(_OF[name](images / 255.0, strength, draws, *more)).contiguous()
