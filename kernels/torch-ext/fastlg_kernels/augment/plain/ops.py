"""timm's pixel operations in plain torch, with Pillow's arithmetic: uint8 [N, H, W, 3] in and out.

Sources: timm.data.auto_augment for the operations, Pillow's ImageOps, ImageEnhance, libImaging/Blend.c, Convert.c,
Filter.c and BoxBlur.c for the arithmetic. Arguments are float64 [N], one per image. The forms are those that CPUs run
in vectors: masks as numbers (torch.where on bytes is many times slower), channels as planes, whole rows of look-ups.
"""

from __future__ import annotations

from functools import lru_cache

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
    first = threshold.ceil().clamp(0, 256)
    above = images - torch.minimum(images, _per_image((first - 1).clamp(min=0).to(torch.uint8)))
    inverted = above.clamp_(max=1).mul_(255).bitwise_or_(_per_image(torch.where(first == 0, 255, 0).to(torch.uint8)))
    # 255 - x is x with every bit turned.
    return inverted.bitwise_xor_(images)


def solarize_add(images: Tensor, amount: Tensor) -> Tensor:
    """Adds to the values below 128, up to 255."""
    # The upper bit minus one: every bit set below 128, none from there on.
    added = (images >> 7).sub_(1).bitwise_and_(_per_image(amount.clamp(0, 255).to(torch.uint8)))
    return torch.minimum(255 - images, added).add_(images)


def auto_contrast(images: Tensor) -> Tensor:
    """Stretches each channel's range to 0..255; a flat channel stays."""
    flat = images.permute(0, 3, 1, 2).contiguous().flatten(2)
    low, high = flat.amin(2, keepdim=True).to(torch.float64), flat.amax(2, keepdim=True).to(torch.float64)
    # A tensor numerator: torch turns number / tensor into a product with the reciprocal, which rounds twice.
    scale = torch.full_like(high, 255.0) / (high - low).clamp(min=1.0)
    level = torch.arange(256, dtype=torch.float64, device=images.device)
    # Pillow's expression in Pillow's order, cut towards zero.
    table = (level * scale + -low * scale).clamp_(0.0, 255.0)
    return _look_up(_table_index(images), torch.where(high > low, table, level), images.shape)


def equalize(images: Tensor) -> Tensor:
    """Flattens each channel's histogram."""
    index = _table_index(images)
    count, total = images.shape[0], images.shape[1] * images.shape[2]
    histogram = torch.bincount(index.view(-1), minlength=count * 768).view(count, 3, 256)
    level = torch.arange(256, device=images.device)
    last = torch.where(histogram > 0, level, 0).amax(-1, keepdim=True)
    step = (total - histogram.gather(-1, last)) // 255
    before = histogram.cumsum(-1) - histogram
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return _look_up(index, torch.where(step > 0, table, level), images.shape)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return to_bytes(images.to(torch.float32).mul_(_per_image(factor.to(torch.float32))))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean luma of the image."""
    grey = luma(planes(images)).sum(dim=(1, 2), dtype=torch.float64)
    mean = (grey / (images.shape[1] * images.shape[2]) + 0.5).floor_()
    return to_bytes(_blend(_per_image(mean.to(torch.float32)), images.to(torch.float32), _per_image(factor)))


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the grey image."""
    values = planes(images)
    return interleave(_blend(luma(values), values, factor.view(-1, 1, 1)))


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; border pixels stay."""
    if min(images.shape[1:3]) < 3:
        return images.clone()
    values = planes(images)
    inner = values[:, :, 1:-1, 1:-1]
    rows = (values[:, :, :-2] + values[:, :, 1:-1]).add_(values[:, :, 2:])
    total = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(inner, alpha=4.0)
    # Pillow rounds total / 13 in float32; a 13th is never near a half, so any float arithmetic agrees.
    smooth = total.add_(6.5).div_(13.0).floor_()
    values[:, :, 1:-1, 1:-1] = _blend(smooth, inner, factor.view(-1, 1, 1))
    return interleave(values)


def gaussian_blur(images: Tensor, radius: Tensor) -> Tensor:
    """Three box blurs along the rows, then three along the columns, each rounded to bytes (BoxBlur.c)."""
    out = torch.empty_like(images)
    for number, (width, weight, edge) in enumerate(box_weights(radius).tolist()):
        image = images[number].to(torch.float64)
        for dimension in (1, 1, 1, 0, 0, 0):
            image = _box_blur(image, dimension, width, weight, edge)
        out[number] = image.to(torch.uint8)
    return out


def box_weights(radius: Tensor) -> Tensor:
    """The box that, run three times, has the Gaussian's variance: int64 [N, 3]: whole radius r, the weight of the
    2r + 1 values inside and of the one beyond either end, in 24 fractional bits.

    Source: Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended box filtering", as in
    Pillow, whose float32 roundings these are. radius: float64 [N], the Gaussian's standard deviation in pixels.
    """
    radius = radius.to(torch.float32)
    variance = radius * radius / 3
    length = (12.0 * variance.double() + 1.0).sqrt().to(torch.float32)
    whole = ((length.double() - 1.0) / 2.0).floor().to(torch.float32)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    box = whole + part
    inside = (torch.full_like(box, 1 << 24) / (box * 2 + 1)).to(torch.int64)
    count = box.to(torch.int64)
    return torch.stack((count, inside, ((1 << 24) - (2 * count + 1) * inside) // 2), dim=1)


def _box_blur(values: Tensor, dimension: int, radius: int, inside: int, beyond: int) -> Tensor:
    """One pass over whole numbers in float64 [H, W, 3], exact: sums stay below 2^32. Border values go on outside."""
    size, reach = values.shape[dimension], radius + 1
    places = torch.arange(-reach, size + reach, device=values.device).clamp_(0, size - 1)
    padded = values.index_select(dimension, places)
    total = padded.narrow(dimension, 1, size).clone()
    for start in range(2, 2 * radius + 2):
        total += padded.narrow(dimension, start, size)
    ends = padded.narrow(dimension, 0, size) + padded.narrow(dimension, 2 * reach, size)
    return total.mul_(inside).add_(ends, alpha=beyond).add_(1 << 23).mul_(2.0**-24).floor_()


def planes(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [3, N, H, W]."""
    return images.permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def interleave(values: Tensor) -> Tensor:
    """float32 [3, N, H, W], changed in place -> uint8 [N, H, W, 3]."""
    return torch.stack(to_bytes(values).unbind(), dim=-1)


def to_bytes(values: Tensor) -> Tensor:
    """Clipped to 0..255, in place, and cut towards zero; the way over int32 is the one that CPUs do in vectors."""
    return values.clamp_(0.0, 255.0).to(torch.int32).to(torch.uint8)


def luma(values: Tensor) -> Tensor:
    """Pillow's conversion to grey: float32 [3, N, H, W] -> whole numbers in float32 [N, H, W]."""
    grey = (values[0] * _LUMA[0]).add_(values[1], alpha=_LUMA[1]).add_(values[2], alpha=_LUMA[2])
    return grey.add_(32768.0).mul_(2.0**-16).floor_()


def _table_index(images: Tensor) -> Tensor:
    """int32 [N, H * W * 3]: every value's place in tables [N, 3, 256], flattened."""
    count = images.shape[0]
    image = torch.arange(count, dtype=torch.int32, device=images.device)[:, None] * 768
    index = images.reshape(count, -1).to(torch.int32)
    return index.add_(_channel_places(index.shape[1], images.device)).add_(image)


@lru_cache(maxsize=8)
def _channel_places(values: int, device: torch.device) -> Tensor:
    """int32 [values]: 0, 256, 512, 0, 256, ... Kept, because making it costs more than all its uses on an image."""
    return (torch.arange(3, dtype=torch.int32, device=device) * 256).repeat(values // 3)


def _look_up(index: Tensor, tables: Tensor, shape: torch.Size) -> Tensor:
    return tables.to(torch.uint8).reshape(-1).index_select(0, index.view(-1)).view(shape)


def _blend(degenerate: Tensor, values: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor * (values - degenerate), rounded to float32 after each step like Blend.c."""
    return (values - degenerate).mul_(factor.to(torch.float32)).add_(degenerate)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
