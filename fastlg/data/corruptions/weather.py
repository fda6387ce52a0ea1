"""Weather: snow, frost, fog, brightness."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastlg.data.corruptions.draws import Draws
from fastlg.data.corruptions.filters import along_both, moved, to_bytes, zoomed
from fastlg.data.corruptions.photographs import photograph_files


def snow(images: Tensor, own: tuple, draws: Draws) -> Tensor:
    mean, deviation, zoom, least, radius, sigma, left = own
    side = images.shape[1]
    flakes = mean + deviation * draws.normal((side, side, 1))
    flakes = zoomed(flakes, zoom)
    flakes = to_bytes(torch.where(flakes < least, 0.0, flakes)) / 255.0
    degrees = draws.uniform(()) * 90 - 135
    flakes = moved(flakes, radius, sigma, degrees).mul(255).round() / 255
    grey = (images * images.new_tensor([0.299, 0.587, 0.114])).sum(dim=-1, keepdim=True)
    whitened = left * images + (1 - left) * torch.maximum(images, grey * 1.5 + 0.5)
    return whitened + flakes + flakes.rot90(2, (1, 2))


def frost(images: Tensor, own: tuple, draws: Draws, zoom: float) -> Tensor:
    side = images.shape[1]
    which, top, left = (draws.uniform(()) for _ in range(3))
    photographs = _photographs(zoom, side)
    pieces = []
    for number, down, across in zip(
        (which * len(photographs)).long().tolist(), top.tolist(), left.tolist(), strict=True
    ):
        whole = photographs[number]
        y, x = (int(share * (length - side)) for share, length in zip((down, across), whole.shape[:2], strict=True))
        pieces.append(whole[y : y + side, x : x + side])
    return own[0] * images + own[1] * torch.stack(pieces).to(images.device) / 255.0


@functools.cache
def _photographs(zoom: float, side: int) -> tuple[Tensor, ...]:
    """uint8 [h, w, 3] each, larger than ``side``, shrunk as OpenCV does: linear between pixels, without antialias."""
    found = []
    for path in photograph_files():
        whole = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())
        factor = max(zoom, (side + 1) / min(whole.shape[:2]))
        if factor != 1:
            rows, columns = (_linear_matrix(length, factor) for length in whole.shape[:2])
            whole = along_both(whole[None].float(), rows, columns)[0].round().to(torch.uint8)
        found.append(whole)
    return tuple(found)


def _linear_matrix(side: int, factor: float) -> Tensor:
    out = math.ceil(side * factor) if factor > 1 else round(side * factor)
    places = ((np.arange(out) + 0.5) / factor - 0.5).clip(0, side - 1)
    lower = np.floor(places).astype(int)
    matrix = np.zeros((out, side))
    np.add.at(matrix, (np.arange(out), lower), 1 - (places - lower))
    np.add.at(matrix, (np.arange(out), (lower + 1).clip(max=side - 1)), places - lower)
    return torch.from_numpy(matrix).float()


def fog(images: Tensor, own: tuple, draws: Draws) -> Tensor:
    strength, fading = own
    side = images.shape[1]
    mist = plasma(1 << (side - 1).bit_length(), fading, draws)[:, :side, :side, None].to(images.dtype)
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images + strength * mist) * brightest / (brightest + strength)


def plasma(side: int, fading: float, draws: Draws) -> Tensor:
    """[N, side, side] from 0 to 1: a fractal height map by diamonds and squares, which wraps around."""
    count = len(draws.sample_ids)
    heights = torch.zeros(count, side, side, dtype=torch.float64, device=draws.sample_ids.device)
    step, wobble = side, 100.0

    def shaken(total: Tensor) -> Tensor:
        return total / 4 + wobble * wobble * (2 * draws.uniform(total.shape[1:]) - 1)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        across = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = shaken(across + across.roll(-1, 2))
        centres, corners = heights[:, half::step, half::step], heights[:, ::step, ::step]
        beside = corners + corners.roll(-1, 2)
        heights[:, ::step, half::step] = shaken(centres + centres.roll(1, 1) + beside)
        below = corners + corners.roll(-1, 1)
        heights[:, half::step, ::step] = shaken(centres + centres.roll(1, 2) + below)
        step, wobble = half, wobble / fading
    heights -= heights.amin(dim=(1, 2), keepdim=True)
    return heights / heights.amax(dim=(1, 2), keepdim=True)


def brightness(images: Tensor, own: float, draws: Draws) -> Tensor:
    """Added to the value of HSV: all three channels grow by one factor, and what is black becomes grey."""
    value = images.amax(dim=-1, keepdim=True)
    wanted = (value + own).clamp(max=1)
    return torch.where(value > 0, images * (wanted / value.clamp(min=1e-9)), wanted)
