"""Crop and resize in plain torch: Pillow's 8-bit arithmetic, bit for bit, for a batch of crops at a time.

Pillow (libImaging/Resample.c) resamples rows first and columns second, rounds to 8 bits in between, and works with
coefficients of 22 fractional bits. Both passes here are sums of weighted table rows (`embedding_bag`). A coefficient is
split into two halves of 11 bits, so that every product and every sum is a whole number below 2^24 and float32 is exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..inputs import RaggedImages, image_views

COEFFICIENT_BITS = 22
_HALF_BITS = 11
# 32 taps * 255 * (2^11 - 1) < 2^24; longer filters (shrinking more than 8 times) are summed in float64.
_FLOAT32_TAPS = 32
# Work on so many output pixels at a time that the float scratch stays in the last-level cache.
_CHUNK_PIXELS = 4 * 224 * 224

SUPPORT_PX = {"bilinear": 1.0, "bicubic": 2.0}


def resize_crops(
    images: Tensor | RaggedImages, boxes: Tensor, size: int, interpolation: str, flip: Tensor | None
) -> Tensor:
    """The plain torch twin of `augment.resize_crops`; arguments already checked."""
    device = images.data.device
    rows = boxes.cpu().tolist()
    out = torch.empty(len(rows), size, size, 3, dtype=torch.uint8, device=device)
    if not rows:
        return out
    lengths, slot = torch.unique(boxes[:, 2:].cpu(), return_inverse=True)
    start, coefficients = (part.to(device) for part in resize_coefficients(lengths, size, interpolation))
    if flip is not None:
        # A mirrored result is the same sums in mirrored order: a second set of rows for the widths.
        start, coefficients = (torch.cat((part, part.flip(1))) for part in (start, coefficients))
        slot[:, 1] += len(lengths) * flip.cpu()
    crops = [view[y : y + h, x : x + w] for view, (y, x, h, w) in zip(image_views(images), rows, strict=True)]
    columns_first = vertical_first(boxes.cpu(), size)
    step = max(1, _CHUNK_PIXELS // max(size * size, *(h * w for _, _, h, w in rows)))
    for transposed in (False, True):
        members = (columns_first == transposed).nonzero().reshape(-1)
        for part in members.split(step) if len(members) else ():
            # The pass that comes first always runs along axis 1 here.
            first, second = slot[part].flip(1).unbind(1) if not transposed else slot[part].unbind(1)
            part = part.tolist()
            chosen = [crops[i] if transposed else crops[i].transpose(0, 1) for i in part]
            pixels = _resample(_padded(chosen), start[first], coefficients[first]).transpose(1, 2)
            pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
            pixels = _resample(pixels, start[second], coefficients[second])
            for i, image in zip(part, pixels.transpose(1, 2) if transposed else pixels, strict=True):
                out[i] = image
    return out


def vertical_first(boxes: Tensor, size: int) -> Tensor:
    """bool [N]: whether the columns are resampled before the rows.

    Pillow 13 does so where the height shrinks by more than twice as many pixels as the width; older ones never do.
    The order only moves the rounding between the passes, but exactness needs one rule and this is the current one.
    """
    height, width = boxes[:, 2], boxes[:, 3]
    return (height > size) & (height - size > 2 * (width - size))


def resize_coefficients(lengths: Tensor, size: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """First source pixel and fixed-point coefficients of every output pixel, as Pillow makes them.

    Args:
        lengths: int64 [M], source lengths in pixels.
        size: output length in pixels.
        interpolation: "bilinear" or "bicubic" (a = -0.5).

    Returns:
        start int64 [M, size] and coefficients int64 [M, size, taps] (22 fractional bits, 0 beyond a window's end).
    """
    scale = (lengths.to(torch.float64) / size)[:, None]
    filter_scale = scale.clamp(min=1.0)
    support = SUPPORT_PX[interpolation] * filter_scale
    centre = (torch.arange(size, dtype=torch.float64, device=lengths.device) + 0.5) * scale
    # The casts cut towards zero like C's; both values are then clamped, so negative ones do not matter.
    start = (centre - support + 0.5).to(torch.int64).clamp(min=0)
    stop = torch.minimum((centre + support + 0.5).to(torch.int64), lengths[:, None])
    taps = math.ceil(2 * support.max().item())
    position = start[:, :, None] + torch.arange(taps, device=lengths.device)
    distance = (position - centre[:, :, None] + 0.5) * (1.0 / filter_scale[:, :, None])
    weight = _FILTERS[interpolation](distance.abs()) * (position < stop[:, :, None])
    # cumsum adds in Pillow's order.
    weight = weight / weight.cumsum(-1)[:, :, -1:] * 2.0**COEFFICIENT_BITS
    return start, (weight + torch.copysign(torch.tensor(0.5, dtype=torch.float64), weight)).to(torch.int64)


def _bilinear(x: Tensor) -> Tensor:
    return (1.0 - x).clamp_(min=0.0)


def _bicubic(x: Tensor) -> Tensor:
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


_FILTERS = {"bilinear": _bilinear, "bicubic": _bicubic}


def _padded(crops: list[Tensor]) -> Tensor:
    """Crops of different sizes as one float32 [n, H, W, 3]; the padding has zero weight and only must be finite."""
    height, width = max(crop.shape[0] for crop in crops), max(crop.shape[1] for crop in crops)
    out = torch.zeros(len(crops), height, width, 3, device=crops[0].device)
    for row, crop in zip(out, crops, strict=True):
        row[: crop.shape[0], : crop.shape[1]] = crop
    return out


def _resample(values: Tensor, start: Tensor, coefficients: Tensor) -> Tensor:
    """Weighted sums along axis 1: whole numbers 0..255 in float32 [n, L, M, 3] -> int32 [n, size, M, 3]."""
    n, length, across, channels = values.shape
    size, taps = coefficients.shape[1:]
    table = values.reshape(n * length, across * channels)
    position = start[:, :, None] + torch.arange(taps, device=start.device)
    # A window's unused end has coefficient 0 and may point past the image: keep the index legal.
    position = position.clamp_(max=length - 1) + (torch.arange(n, device=start.device) * length)[:, None, None]
    index = position.reshape(-1, taps)
    weights = coefficients.reshape(-1, taps)
    half = 1 << (COEFFICIENT_BITS - 1)
    if taps <= _FLOAT32_TAPS:
        low = _bag(table, index, (weights & ((1 << _HALF_BITS) - 1)).to(torch.float32))
        high = _bag(table, index, (weights >> _HALF_BITS).to(torch.float32))
        low = low.add_(half).mul_(2.0**-_HALF_BITS).floor_()
        total = high.add_(low).mul_(2.0**-_HALF_BITS)
    else:
        total = _bag(table.to(torch.float64), index, weights.to(torch.float64))
        total = total.add_(half).mul_(2.0**-COEFFICIENT_BITS)
    return total.clamp_(0, 255).to(torch.int32).reshape(n, size, across, channels)


def _bag(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)
