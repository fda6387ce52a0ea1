"""timm's pixel operations in plain torch, with Pillow's arithmetic: uint8 [N, H, W, 3] in and out.

Sources: timm.data.auto_augment for the operations, Pillow's ImageOps, ImageEnhance, libImaging/Blend.c, Convert.c and
Filter.c for the arithmetic. Arguments are float64 [N], one per image.
"""

from __future__ import annotations

import torch
from torch import Tensor

# ITU-R 601-2 luma in 16 fractional bits (Convert.c); the sums stay below 2^24, so float32 is exact.
_LUMA = (19595.0, 38470.0, 7471.0)


def invert(images: Tensor) -> Tensor:
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the upper `bits` bits; 0 or fewer gives black (Pillow 13 refuses 0 bits), 8 or more keeps the image."""
    mask = 256 - torch.exp2(8 - bits.clamp(0, 8)).to(torch.int64)
    return images & _per_image(mask.to(torch.uint8))


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the values at or above the threshold; 256 leaves the image as it is."""
    # A threshold of 256 does not fit uint8: compare with the largest value that stays.
    stays = threshold.ceil().clamp(0, 256).to(torch.int64) - 1
    below = images <= _per_image(stays.clamp(min=0).to(torch.uint8))
    below = below & _per_image(stays >= 0)
    return torch.where(below, images, 255 - images)


def solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    """Adds to the values below 128, up to 255."""
    amount = _per_image(amount.to(torch.uint8))
    return torch.where(images < 128, images + torch.minimum(255 - images, amount), images)


def auto_contrast(images: Tensor) -> Tensor:
    """Stretches each channel's range to 0..255; a flat channel stays."""
    low = images.amin(dim=(1, 2)).to(torch.float64)[:, :, None]
    high = images.amax(dim=(1, 2)).to(torch.float64)[:, :, None]
    # A tensor numerator: torch turns number / tensor into a product with the reciprocal, which rounds twice.
    scale = torch.full_like(high, 255.0) / (high - low).clamp(min=1.0)
    level = torch.arange(256, dtype=torch.float64, device=images.device)
    # Whole numbers divide exactly where Pillow's do: same expression, same order, cut towards zero.
    table = (level * scale + -low * scale).clamp_(0.0, 255.0).to(torch.int64)
    table = torch.where(high > low, table, level.to(torch.int64))
    return apply_tables(images, table.to(torch.uint8))


def equalize(images: Tensor) -> Tensor:
    """Flattens each channel's histogram."""
    histogram = histograms(images)
    occupied = histogram > 0
    total = images.shape[1] * images.shape[2]
    last = torch.where(occupied, torch.arange(256, device=images.device), -1).amax(-1, keepdim=True)
    step = (total - histogram.gather(-1, last.clamp(min=0))) // 255
    before = histogram.cumsum(-1) - histogram
    table = (step // 2 + before) // step.clamp(min=1)
    level = torch.arange(256, device=images.device)
    return apply_tables(images, torch.where(step > 0, table.clamp(max=255), level).to(torch.uint8))


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _to_uint8(images.to(torch.float32).mul_(_per_image(factor.to(torch.float32))))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean luma of the image."""
    mean = luma(images).sum(dim=(1, 2, 3), dtype=torch.int64).to(torch.float64) / (images.shape[1] * images.shape[2])
    return _blend(_per_image((mean + 0.5).floor().to(torch.float32)), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the grey image."""
    return _blend(luma(images).to(torch.float32), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; border pixels stay."""
    if min(images.shape[1:3]) < 3:
        return images.clone()
    wide = images.to(torch.int16)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    # Pillow rounds total / 13 in float32; a 13th is never near a half, so any float arithmetic agrees.
    smooth = total.to(torch.float32).add_(6.5).div_(13.0).floor_()
    out = images.clone()
    out[:, 1:-1, 1:-1] = _blend(smooth, images[:, 1:-1, 1:-1], factor)
    return out


def luma(images: Tensor) -> Tensor:
    """Pillow's conversion to grey: uint8 [N, H, W, 3] -> int32 [N, H, W, 1]."""
    weights = torch.tensor(_LUMA, device=images.device)[:, None]
    return (images.to(torch.float32) @ weights).add_(32768.0).mul_(2.0**-16).to(torch.int32)


def histograms(images: Tensor) -> Tensor:
    """int64 [N, 3, 256]: how often each value occurs in each channel."""
    count = images.shape[0]
    offset = torch.arange(count * 3, device=images.device).view(count, 1, 1, 3) * 256
    return torch.bincount((images + offset).reshape(-1), minlength=count * 768).view(count, 3, 256)


def apply_tables(images: Tensor, tables: Tensor) -> Tensor:
    """Replaces every value by its channel's table entry: tables uint8 [N, 3, 256]."""
    count = images.shape[0]
    offset = torch.arange(count * 3, dtype=torch.int32, device=images.device).view(count, 1, 1, 3) * 256
    index = images.to(torch.int32).add_(offset).reshape(-1)
    return tables.reshape(-1).index_select(0, index).view(images.shape)


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor * (images - degenerate) in float32, cut to uint8 (Blend.c)."""
    change = (images.to(torch.float32) - degenerate).mul_(_per_image(factor.to(torch.float32)))
    return _to_uint8(change.add_(degenerate))


def _to_uint8(values: Tensor) -> Tensor:
    """Clipped to 0..255 and cut towards zero; the way over int32 is the one that CPUs do in vectors."""
    return values.clamp_(0.0, 255.0).to(torch.int32).to(torch.uint8)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)

