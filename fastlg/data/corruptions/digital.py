"""Digital: contrast, elastic transform, pixelate, JPEG."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastlg.data.corruptions.draws import Draws
from fastlg.data.corruptions.filters import along_both, box_matrix, gaussian_matrix, sampled


def contrast(images: Tensor, own: float, draws: Draws) -> Tensor:
    means = images.mean(dim=(1, 2), keepdim=True)
    return (images - means) * own + means


def elastic_transform(images: Tensor, own: tuple, draws: Draws) -> Tensor:
    """A random affine map, its border mirrored, then a smooth random displacement of every pixel.

    OpenCV rounds the affine map's coordinates to 1/32 px; here they are exact.
    """
    count, side = images.shape[:2]
    amount, smoothness, shift = (part * side for part in own)
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64, device=images.device),) * 2, indexing="ij")
    back = _affine(side, shift * (2 * draws.uniform((3, 2)) - 1))
    ones = torch.ones_like(x)
    there = torch.einsum("nij,jhw->nihw", back, torch.stack([x, y, ones]))
    turned = sampled(images, there[:, 1], there[:, 0], is_symmetric=False)
    smooth = gaussian_matrix(side, smoothness, border="reflect", truncate=3.0).double().to(images.device)
    dx, dy = (smooth @ (2 * draws.uniform((side, side)) - 1) @ smooth.T * amount for _ in range(2))
    return sampled(turned, y + dy, x + dx, is_symmetric=True)


def _affine(side: int, shifts: Tensor) -> Tensor:
    """float64 [N, 2, 3]: from the new image's (x, y, 1) to the old one's; ``shifts`` [N, 3, 2] move three corners."""
    middle, reach = side // 2, side // 3
    corners = [[middle + reach] * 2, [middle + reach, middle - reach], [middle - reach] * 2]
    old = shifts.new_tensor(corners).expand(len(shifts), 3, 2)
    new = torch.cat([old + shifts, shifts.new_ones(len(shifts), 3, 1)], dim=2)
    return torch.linalg.solve(new, old).transpose(1, 2)


def pixelate(images: Tensor, own: float, draws: Draws) -> Tensor:
    """Pillow's BOX resize down and up again; each axis is rounded to whole levels, the width first."""
    side = images.shape[1]
    small = int(side * own)
    down, up = box_matrix(small, side).to(images.device), box_matrix(side, small).to(images.device)
    levels = images * 255
    for matrix in (down, up):
        levels = along_both(levels, torch.eye(levels.shape[1], device=images.device), matrix).add_(0.5).floor_()
        levels = along_both(levels, matrix, torch.eye(levels.shape[2], device=images.device)).add_(0.5).floor_()
    return levels / 255


def jpeg_compression(images: Tensor, own: int, draws: Draws) -> Tensor:
    """By Pillow, image after image on the host."""
    found = []
    for pixels in images.mul(255).round().to(torch.uint8).cpu().numpy():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=own)
        found.append(np.asarray(Image.open(buffer)))
    return torch.from_numpy(np.stack(found)).to(images.device) / 255.0
