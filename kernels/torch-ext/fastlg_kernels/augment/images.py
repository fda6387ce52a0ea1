"""The two forms in which images come: a dense batch [N, H, W, 3], or images of mixed sizes back to back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RaggedImages(NamedTuple):
    """Images of mixed sizes stored back to back.

    Attributes:
        data: uint8 [bytes], RGB pixels of every stored image in row-major HWC order.
        offsets: int64 [N], first byte of each image of the batch; any order, repeats allowed.
        sizes: int64 [N, 2], height and width of each image of the batch in pixels; like offsets on any device.
    """

    data: Tensor
    offsets: Tensor
    sizes: Tensor


def image_views(images: Tensor | RaggedImages) -> list[Tensor]:
    """Views [h, w, 3] of each image."""
    if isinstance(images, Tensor):
        return list(images.unbind())
    views = []
    for offset, (height, width) in zip(images.offsets.tolist(), images.sizes.tolist(), strict=True):
        views.append(images.data[offset : offset + height * width * 3].view(height, width, 3))
    return views


def image_sizes(images: Tensor | RaggedImages) -> Tensor:
    """int64 [N, 2]: height and width of each image."""
    if isinstance(images, Tensor):
        return torch.tensor(images.shape[1:3]).expand(images.shape[0], 2)
    return images.sizes
