"""timm's geometric operations in plain torch, as Pillow's Image.transform(AFFINE) does them.

Source: libImaging/Geometry.c. An output pixel's centre is mapped into the source; where that point lies outside, the
pixel gets the fill colour, else it is interpolated with source positions clamped to the border, and cut (not rounded)
to 8 bits. The bicubic kernel here is the one with a = -1, unlike the resize's. Coordinates are float64 as in Pillow,
values float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

# So many images at a time that the float scratch stays in cache.
_CHUNK_PIXELS = 2 * 224 * 224


def shear_x(images: Tensor, factor: Tensor, resample: str, fill: Tensor) -> Tensor:
    rows = torch.arange(images.shape[1], dtype=torch.float64, device=images.device) + 0.5
    return _shift_rows(images, factor[:, None] * rows, resample, fill)


def shear_y(images: Tensor, factor: Tensor, resample: str, fill: Tensor) -> Tensor:
    return shear_x(images.transpose(1, 2), factor, resample, fill).transpose(1, 2).contiguous()


def translate_x(images: Tensor, fraction: Tensor, resample: str, fill: Tensor) -> Tensor:
    """Moves the content left by a fraction of the width."""
    shift = (fraction * images.shape[2])[:, None].expand(-1, images.shape[1])
    return _shift_rows(images, shift, resample, fill)


def translate_y(images: Tensor, fraction: Tensor, resample: str, fill: Tensor) -> Tensor:
    """Moves the content up by a fraction of the height."""
    return translate_x(images.transpose(1, 2), fraction, resample, fill).transpose(1, 2).contiguous()


def rotate(images: Tensor, degrees: Tensor, resample: str, fill: Tensor) -> Tensor:
    """Turns counter-clockwise around the image's centre."""
    height, width = images.shape[1:3]
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    matrix = rotation_matrix(degrees, height, width)
    for part in _parts(images):
        out[part] = _affine(images[part], matrix[part], resample, fill)
    return out


def rotation_matrix(degrees: Tensor, height: int, width: int) -> Tensor:
    """float64 [N, 6]: source x = a * (x + 0.5) + b * (y + 0.5) + c, source y = d, e, f likewise (Image.rotate)."""
    angle = -torch.deg2rad(torch.remainder(degrees, 360.0))
    # Pillow rounds to 15 digits, so that quarter turns hit pixel centres.
    cos, sin = torch.round(angle.cos(), decimals=15), torch.round(angle.sin(), decimals=15)
    x, y = width / 2, height / 2
    return torch.stack((cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y), dim=1)


def _shift_rows(images: Tensor, shift: Tensor, resample: str, fill: Tensor) -> Tensor:
    """Row y of the output at x is the source row y at x + shift[n, y]: float64 shift [N, H], in pixels."""
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    width = images.shape[2]
    column = torch.arange(width, device=images.device)
    before, taps = _TAPS[resample]
    reach = torch.arange(-before, width - before + taps - 1, device=images.device)
    for part in _parts(images):
        whole = shift[part].floor()
        index = (whole.to(torch.int64)[:, :, None] + reach).clamp_(0, width - 1)
        source = images[part].gather(2, index[..., None].expand(-1, -1, -1, 3)).to(torch.float32)
        fraction = (shift[part] - whole).to(torch.float32)[:, :, None, None]
        value = _interpolate([source[:, :, tap : tap + width] for tap in range(taps)], fraction)
        centre = (column + 0.5) + shift[part][:, :, None]
        inside = (centre >= 0.0) & (centre < width)
        out[part] = torch.where(inside[..., None], _to_uint8(value), fill)
    return out


def _affine(images: Tensor, matrix: Tensor, resample: str, fill: Tensor) -> Tensor:
    count, height, width, _ = images.shape
    a, b, c, d, e, f = (value.view(-1, 1, 1) for value in matrix.unbind(1))
    column = (torch.arange(width, dtype=torch.float64, device=images.device) + 0.5)[None, None, :]
    row = (torch.arange(height, dtype=torch.float64, device=images.device) + 0.5)[None, :, None]
    x, y = a * column + b * row + c, d * column + e * row + f
    inside = (x >= 0.0) & (x < width) & (y >= 0.0) & (y < height)
    x, y = x.sub_(0.5), y.sub_(0.5)
    left, top = x.floor(), y.floor()
    across, down = x.sub_(left).to(torch.float32)[..., None], y.sub_(top).to(torch.float32)[..., None]
    before, taps = _TAPS[resample]
    first = torch.arange(count, device=images.device).view(-1, 1, 1) * (height * width)
    columns = [(left.to(torch.int64) + tap - before).clamp_(0, width - 1) for tap in range(taps)]
    pixels = images.reshape(-1, 3)
    lines = []
    for tap in range(taps):
        line = (top.to(torch.int64) + tap - before).clamp_(0, height - 1) * width + first
        sources = [pixels[(line + each).reshape(-1)].view(images.shape).to(torch.float32) for each in columns]
        lines.append(_interpolate(sources, across))
    return torch.where(inside[..., None], _to_uint8(_interpolate(lines, down)), fill)


# Name -> (taps before the point's own pixel, taps in all).
_TAPS = {"bilinear": (0, 2), "bicubic": (1, 4)}


def _interpolate(taps: list[Tensor], fraction: Tensor) -> Tensor:
    """Pillow's polynomials, in its order: exact where the taps are equal, which a sum of weights would not be."""
    if len(taps) == 2:
        return (taps[1] - taps[0]).mul_(fraction).add_(taps[0])
    v1, v2, v3, v4 = taps
    slope, bend = v3 - v1, v4 - v3
    first = v1 - v2
    # 2 * (v1 - v2) + v3 - v4 and -v1 + v2 - v3 + v4: whole numbers, exact in any order.
    value = (bend - first).mul_(fraction).add_(first.mul_(2.0).sub_(bend))
    return value.mul_(fraction).add_(slope).mul_(fraction).add_(v2)


def _to_uint8(values: Tensor) -> Tensor:
    return values.clamp_(0.0, 255.0).to(torch.int32).to(torch.uint8)


def _parts(images: Tensor) -> list[slice]:
    step = max(1, _CHUNK_PIXELS // (images.shape[1] * images.shape[2]))
    return [slice(first, first + step) for first in range(0, images.shape[0], step)]
