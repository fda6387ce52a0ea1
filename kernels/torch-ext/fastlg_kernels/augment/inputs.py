"""What callers hand in: images in two forms, and the checks of all arguments; every message names value and fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..devices import HAS_TRITON


class RaggedImages(NamedTuple):
    """Images of mixed sizes stored back to back; the other form is a dense batch, uint8 [N, H, W, 3].

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


def takes_triton(images: Tensor) -> bool:
    """Whether these images are worked on by the Triton kernels: they lie on a GPU and Triton is installed."""
    return images.is_cuda and HAS_TRITON


def check_images(images: Tensor | RaggedImages) -> int:
    """Type, dtype and shape; returns the number of images."""
    if isinstance(images, RaggedImages):
        data, offsets, sizes = images
        if data.dtype != torch.uint8 or data.dim() != 1:
            raise TypeError(f"RaggedImages.data must be uint8 [bytes], got {data.dtype} {tuple(data.shape)}")
        if offsets.dim() != 1 or sizes.shape != (offsets.shape[0], 2):
            raise ValueError(
                f"RaggedImages wants offsets [N] and sizes [N, 2], got {tuple(offsets.shape)} and {tuple(sizes.shape)}"
            )
        if data.device.type == offsets.device.type == sizes.device.type == "cpu":
            check_offsets(data, offsets, sizes)
        return offsets.shape[0]
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise TypeError(f"images must be a uint8 tensor [N, H, W, 3], got {kind(images)}")
    if images.dim() != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images must be [N, H, W, 3] (channels last), got shape {tuple(images.shape)}")
    return images.shape[0]


def check_offsets(data: Tensor, offsets: Tensor, sizes: Tensor) -> None:
    wrong = (offsets < 0) | (sizes < 1).any(1) | (offsets + sizes.prod(1) * 3 > len(data))
    if wrong.any():
        number = int(wrong.nonzero()[0])
        raise ValueError(
            f"RaggedImages: image {number} of size {sizes[number].tolist()} at byte {offsets[number].item()} does not "
            f"lie inside the {len(data)} bytes of data"
        )


def check_boxes(boxes: Tensor, sizes: Tensor) -> None:
    y, x, h, w = boxes.unbind(1)
    wrong = (y < 0) | (x < 0) | (h < 1) | (w < 1) | (y + h > sizes[:, 0]) | (x + w > sizes[:, 1])
    if wrong.any():
        number = int(wrong.nonzero()[0])
        raise ValueError(
            f"boxes[{number}] = {boxes[number].tolist()} (y, x, height, width) does not lie inside its image of "
            f"height and width {sizes[number].tolist()}"
        )


def check_seeds(seeds: Tensor, count: int) -> None:
    if not isinstance(seeds, Tensor) or seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be an int64 tensor [N], got {kind(seeds)}: make them with sample_seeds")
    if seeds.shape != (count,):
        raise ValueError(f"seeds must have shape ({count},), one per image, got {tuple(seeds.shape)}")


def check_flip(flip: Tensor | None, count: int) -> None:
    if flip is not None and (not isinstance(flip, Tensor) or flip.dtype != torch.bool or flip.shape != (count,)):
        raise ValueError(f"flip must be a bool tensor [{count}], got {kind(flip)}")


def check_resample(resample: str) -> None:
    if resample not in ("bicubic", "bilinear"):
        raise ValueError(f"resample must be 'bicubic' or 'bilinear', got {resample!r}")


def fill_colour(fill: Sequence[int]) -> tuple[int, int, int]:
    if len(fill) != 3 or any(isinstance(v, bool) or v != int(v) or not 0 <= v <= 255 for v in fill):
        raise ValueError(f"fill must be three whole numbers in 0..255 (R, G, B), got {fill!r}")
    return tuple(int(v) for v in fill)


def three(values: Sequence[float], name: str) -> tuple[float, float, float]:
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3 or (name == "std" and min(numbers) <= 0):
        raise ValueError(f"{name} must be three numbers{' above 0' if name == 'std' else ''} (R, G, B), got {values!r}")
    return numbers


def kind(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
