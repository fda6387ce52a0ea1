"""timm's geometric operations in plain torch, as Pillow's Image.transform(AFFINE) does them.

Source: libImaging/Geometry.c. An output pixel's centre is mapped into the source; where that point lies outside, the
pixel gets the fill colour, else it is interpolated with source positions clamped to the border, and cut (not rounded)
to 8 bits. The bicubic kernel here is the one with a = -1, unlike the resize's. Coordinates are float64 as in Pillow,
values float32 in planes [3, N, H, W].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops import interleave, planes

Colour = tuple[int, int, int]


def shear_x(images: Tensor, factor: Tensor, resample: str, fill: Colour) -> Tensor:
    return _shift(images, factor[:, None] * _centres(images.shape[1], images.device), 1, resample, fill)


def shear_y(images: Tensor, factor: Tensor, resample: str, fill: Colour) -> Tensor:
    return _shift(images, factor[:, None] * _centres(images.shape[2], images.device), 0, resample, fill)


def translate_x(images: Tensor, fraction: Tensor, resample: str, fill: Colour) -> Tensor:
    """Moves the content left by a fraction of the width."""
    return _shift(images, (fraction * images.shape[2])[:, None].expand(-1, images.shape[1]), 1, resample, fill)


def translate_y(images: Tensor, fraction: Tensor, resample: str, fill: Colour) -> Tensor:
    """Moves the content up by a fraction of the height."""
    return _shift(images, (fraction * images.shape[1])[:, None].expand(-1, images.shape[2]), 0, resample, fill)


def rotate(images: Tensor, degrees: Tensor, resample: str, fill: Colour) -> Tensor:
    """Turns counter-clockwise around the image's centre."""
    matrix = rotation_matrix(degrees, images.shape[1], images.shape[2])
    a, b, c, d, e, f = (value.view(-1, 1, 1) for value in matrix.unbind(1))
    column, row = _centres(images.shape[2], images.device), _centres(images.shape[1], images.device)[:, None]
    return _sample(images, a * column + b * row + c, d * column + e * row + f, resample, fill)


def rotation_matrix(degrees: Tensor, height: int, width: int) -> Tensor:
    """float64 [N, 6]: source x = a * (x + 0.5) + b * (y + 0.5) + c, source y = d, e, f likewise (Image.rotate)."""
    angle = -torch.deg2rad(torch.remainder(degrees, 360.0))
    # Pillow rounds to 15 digits, so that quarter turns hit pixel centres.
    cos, sin = torch.round(angle.cos(), decimals=15), torch.round(angle.sin(), decimals=15)
    x, y = width / 2, height / 2
    return torch.stack((cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y), dim=1)


def _shift(images: Tensor, shift: Tensor, axis: int, resample: str, fill: Colour) -> Tensor:
    """Moves every row (axis 1) or column (axis 0) along itself: out[n, p] = in[n, p + shift].

    shift: float64 in pixels, [N, H] for rows and [N, W] for columns.
    """
    count, height, width, _ = images.shape
    length, device = images.shape[1 + axis], images.device
    before, taps = _TAPS[resample]
    reach, centre = torch.arange(-before, length - before + taps - 1, device=device), _centres(length, device)
    shift = shift[:, :, None] if axis == 1 else shift[:, None, :]
    reach, centre = (reach, centre) if axis == 1 else (reach[:, None], centre[:, None])
    whole = shift.floor()
    along = (whole.to(torch.int64) + reach).clamp_(0, length - 1)
    # The other axis's position, in pixels of the flattened batch.
    across = torch.arange(height, device=device)[:, None] * width if axis == 1 else torch.arange(width, device=device)
    first = torch.arange(count, device=device).view(-1, 1, 1) * (height * width)
    source = _gather(planes(images).view(3, -1), along.mul_(width if axis == 0 else 1).add_(across).add_(first))
    pixels = [source.narrow(2 + axis, tap, length) for tap in range(taps)]
    return _filled(_interpolate(pixels, _weights(shift - whole, resample)), _inside(centre + shift, length), fill)


def _sample(images: Tensor, x: Tensor, y: Tensor, resample: str, fill: Colour) -> Tensor:
    """Interpolates at float64 positions x, y [N, H, W] of the source, whose first pixel's centre is at 0.5."""
    count, height, width, _ = images.shape
    inside = _inside(x, width) & _inside(y, height)
    x, y = x - 0.5, y - 0.5
    left, top = x.floor(), y.floor()
    across, down = _weights(x.sub_(left), resample), _weights(y.sub_(top), resample)
    before, taps = _TAPS[resample]
    # The point's own pixel comes first: the others are added as weighted differences to it.
    steps = [0, *(tap - before for tap in range(taps) if tap != before)]
    columns = [(left.to(torch.int32) + step).clamp_(0, width - 1) for step in steps]
    first = torch.arange(count, dtype=torch.int32, device=images.device).view(-1, 1, 1) * (height * width)
    source, top = _packed(images), top.to(torch.int32)
    # A rotation reads all over the image, and one packed word per pixel is all that the cache need hold. Scratch is
    # reused: fresh memory would cost more than the arithmetic.
    index, word = torch.empty_like(top), torch.empty_like(source)
    own, other, line, own_line, total = torch.empty(5, 3, *top.shape, device=images.device).unbind()
    for number, step in enumerate(steps):
        start = (top + step).clamp_(0, height - 1).mul_(width).add_(first)
        for tap, place in enumerate(columns):
            torch.index_select(source, 0, torch.add(start, place, out=index).view(-1), out=word)
            pixel = _unpack(word, other if tap else own)
            line = line.copy_(pixel) if tap == 0 else line.addcmul_(pixel.sub_(own), across[tap - 1])
        if number == 0:
            own_line.copy_(line)
            total.copy_(line)
        else:
            total.addcmul_(line.sub_(own_line), down[number - 1])
    return _filled(total, inside, fill)


def _packed(images: Tensor) -> Tensor:
    """int32 [N * H * W]: the three channels of a pixel in one word."""
    red, green, blue = images.permute(3, 0, 1, 2).to(torch.int32, memory_format=torch.contiguous_format).flatten(1)
    return red | (green << 8) | (blue << 16)


def _unpack(words: Tensor, out: Tensor) -> Tensor:
    """Words of `_packed` into float32 planes [3, N, H, W]."""
    flat = out.view(3, -1)
    flat[0].copy_(words & 255)
    flat[1].copy_((words >> 8) & 255)
    flat[2].copy_(words >> 16)
    return out


# Name -> (taps before the point's own pixel, taps in all).
_TAPS = {"bilinear": (0, 2), "bicubic": (1, 4)}


def _weights(fraction: Tensor, resample: str) -> list[Tensor]:
    """float32 weights of all taps but the point's own pixel, from the float64 fraction."""
    d = fraction
    if resample == "bilinear":
        return [d.to(torch.float32)]
    square, cube = d * d, d * d * d
    return [each.to(torch.float32) for each in (2.0 * square - d - cube, d + square - cube, cube - square)]


def _interpolate(taps: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The point's own pixel plus weighted differences to it: exact where all taps are equal, as Pillow's formula is."""
    own = taps.pop(len(taps) // 2 - 1)
    value = own.clone()
    for tap, weight in zip(taps, weights, strict=True):
        value.addcmul_(tap - own, weight)
    return value


def _filled(values: Tensor, inside: Tensor, fill: Colour) -> Tensor:
    """uint8 [N, H, W, 3] of planes [3, N, H, W], with the fill colour where the point lay outside."""
    colour = torch.tensor(fill, dtype=torch.float32, device=values.device).view(3, 1, 1, 1)
    # Clipped and cut first, so that taking the colour away and adding it again is exact.
    values = values.clamp_(0.0, 255.0).floor_().sub_(colour).mul_(inside.to(torch.float32)).add_(colour)
    return interleave(values)


def _gather(source: Tensor, index: Tensor) -> Tensor:
    """[3, pixels] at index [N, H, W] -> [3, N, H, W]."""
    return source.gather(1, index.view(1, -1).expand(3, -1)).view(3, *index.shape)


def _inside(position: Tensor, length: int) -> Tensor:
    return (position >= 0.0) & (position < length)


def _centres(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, dtype=torch.float64, device=device) + 0.5
