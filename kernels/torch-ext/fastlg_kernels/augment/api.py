"""timm's train transform for whole batches: crop and resize, RandAugment, normalise, random erasing.

Every function depends on its arguments alone, sample by sample: the same sample with the same seed or box gives the
same pixels alone or in any batch. Pixels follow Pillow's arithmetic. Images are uint8 [N, H, W, 3], channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from .inputs import (
    RaggedImages,
    check_boxes,
    check_flip,
    check_images,
    check_resample,
    check_seeds,
    fill_colour,
    image_sizes,
    kind,
    takes_triton,
    three,
)
from .plain import augment as augment_torch
from .plain import resize as resize_torch
from .rand_augment import LEVELS, OP_NAMES, RandAugmentSpec, draw_rand_augment, parse_rand_augment

IMAGENET_FILL = (124, 116, 104)
ERASING_MODES = ("pixel", "const", "rand")
ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)


def resize_crops(
    images: Tensor | RaggedImages,
    boxes: Tensor,
    size: int,
    *,
    interpolation: str = "bicubic",
    flip: Tensor | None = None,
) -> Tensor:
    """Cuts one box out of every image and resizes it to a square, equal to Pillow's `crop` and `resize` bit for bit.

    Args:
        images: uint8 [N, H, W, 3], or `RaggedImages` for images of mixed sizes stored back to back.
        boxes: integer [N, 4]: y, x, height, width in pixels of the source image, inside it. Best left on the CPU also
            when the images are on a GPU, and so are offsets and sizes of `RaggedImages`: their extremes are needed
            there, their numbers are only checked there, and counting there costs no launches.
        size: side of the output in pixels.
        interpolation: "bicubic" (a = -0.5) or "bilinear", both with antialiasing where the image shrinks.
        flip: bool [N]; True mirrors the result left to right.

    Returns:
        uint8 [N, size, size, 3] on the images' device.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, a box outside its image, an unknown interpolation.
    """
    count = check_images(images)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a positive number of pixels, got {size!r}")
    if interpolation not in resize_torch.SUPPORT_PX:
        raise ValueError(f"interpolation must be 'bicubic' or 'bilinear', got {interpolation!r}")
    if not isinstance(boxes, Tensor) or boxes.is_floating_point() or boxes.dtype == torch.bool:
        raise TypeError(f"boxes must be an integer tensor [N, 4] (y, x, height, width), got {kind(boxes)}")
    if boxes.shape != (count, 4):
        raise ValueError(f"boxes must have shape ({count}, 4), one box per image, got {tuple(boxes.shape)}")
    check_flip(flip, count)
    boxes = boxes.to(torch.int64)
    sizes = image_sizes(images)
    if boxes.device.type == sizes.device.type == "cpu":
        check_boxes(boxes, sizes)
    if takes_triton(images.data):
        from .triton.resize import resize_crops as run
    else:
        from .plain.resize import resize_crops as run
    return run(images, boxes, size, interpolation, flip)


def apply_op(
    images: Tensor,
    name: str,
    value: Tensor | float | None = None,
    *,
    resample: str = "bicubic",
    fill: Sequence[int] = IMAGENET_FILL,
) -> Tensor:
    """One of timm's augmentation operations, by timm's name and with its resolved argument.

    Args:
        images: uint8 [N, H, W, 3].
        name: timm's name (see `OP_NAMES`); the "Increasing" names do the same as the plain ones, as in timm.
        value: the argument as timm passes it to Pillow, a number or a tensor [N]: degrees, factor, bits to keep,
            threshold, amount, fraction of the width or height, or radius in pixels. None for AutoContrast, Equalize
            and Invert.
        resample: "bicubic" (a = -1, as Pillow's transforms) or "bilinear", for the geometric operations.
        fill: colour (R, G, B) of the area outside the source, for the geometric operations.

    Returns:
        uint8 [N, H, W, 3]. Exact for Invert, Posterize (0 bits: black), Solarize, SolarizeAdd, Equalize, AutoContrast,
        Desaturate and GaussianBlur.

    Raises:
        TypeError: a wrong type or dtype. ValueError: an unknown name, a missing or misshapen value, a bad fill.
    """
    count = check_images(images)
    if name not in LEVELS:
        raise ValueError(f"unknown operation {name!r}; known are {', '.join(OP_NAMES)}")
    check_resample(resample)
    takes_value = name not in ("AutoContrast", "Equalize", "Invert")
    if takes_value == (value is None):
        raise ValueError(f"{name} {'needs a value' if takes_value else 'takes no value'}, got {value!r}")
    if isinstance(value, Tensor):
        if value.shape not in ((), (count,)):
            raise ValueError(f"value must be one number or a tensor [{count}], got shape {tuple(value.shape)}")
    elif value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"value must be a number or a tensor, got {kind(value)}")
    value = torch.as_tensor(0.0 if value is None else value, dtype=torch.float64, device=images.device).expand(count)
    if count == 0:
        return images.clone()
    return pixel_module(images).apply_op(images, name, value, resample, fill_colour(fill))


def rand_augment(
    images: Tensor,
    seeds: Tensor,
    *,
    spec: str | RandAugmentSpec = "rand-m9-mstd0.5-inc1",
    resample: str = "bicubic",
    fill: Sequence[int] = IMAGENET_FILL,
) -> Tensor:
    """timm's RandAugment, drawn for every sample from its own seed.

    Args:
        images: uint8 [N, H, W, 3].
        seeds: int64 [N] (`rng.sample_seeds`).
        spec: timm's string (see `parse_rand_augment`) or its parsed form.
        resample, fill: as in `apply_op`; timm passes the data's interpolation and mean colour.

    Returns:
        uint8 [N, H, W, 3], a new tensor.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or a bad spec, naming the part.
    """
    count = check_images(images)
    check_seeds(seeds, count)
    check_resample(resample)
    draw = draw_rand_augment(seeds.to(images.device), spec)
    return pixel_module(images).rand_augment(images, draw, resample, fill_colour(fill))


def normalise(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    flip: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(images / 255 - mean) / std, channels first; float32 results equal torchvision's ToTensor and Normalize.

    Args:
        images: uint8 [N, H, W, 3].
        mean, std: three numbers each, for values in 0..1 (timm's units).
        flip: bool [N]; True mirrors the image left to right.
        dtype: a floating-point type; the arithmetic is float32.

    Returns:
        `dtype` [N, 3, H, W], contiguous.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, or a standard deviation that is not positive.
    """
    count = check_images(images)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {dtype}")
    mean, std = three(mean, "mean"), three(std, "std")
    check_flip(flip, count)
    return pixel_module(images).normalise(images, mean, std, flip, dtype)


def random_erasing(
    images: Tensor,
    seeds: Tensor,
    *,
    probability: float = 0.25,
    area: tuple[float, float] = ERASED_AREA,
    ratio: tuple[float, float] = ERASED_RATIO,
    mode: str = "pixel",
    count: int = 1,
) -> Tensor:
    """timm's RandomErasing on normalised images, drawn for every sample from its own seed.

    Args:
        images: floating-point [N, 3, H, W], normalised; changed in place like timm's, only inside rectangles.
        seeds: int64 [N]; take others than for `rand_augment` (`rng.sample_seeds` with another purpose).
        probability: chance that an image is erased.
        area: range of the erased share of the image, shared out among an image's rectangles.
        ratio: range of height / width, drawn uniformly in its logarithm.
        mode: what fills a rectangle: "pixel" (a standard normal per value), "rand" (one per channel), "const" (0).
        count: most rectangles per image; each erased image gets 1..count.

    Returns:
        `images`.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, range or mode.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(f"images must be a floating-point tensor [N, C, H, W], got {kind(images)}: normalise first")
    if images.dim() != 4:
        raise ValueError(f"images must be [N, C, H, W], got shape {tuple(images.shape)}")
    check_seeds(seeds, images.shape[0])
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must lie in 0..1, got {probability}")
    if not 0.0 < area[0] <= area[1] <= 1.0:
        raise ValueError(f"area must be a rising range inside 0..1, got {area}")
    if not 0.0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio must be a rising range of positive numbers, got {ratio}")
    if mode not in ERASING_MODES:
        raise ValueError(f"mode must be one of {', '.join(ERASING_MODES)}, got {mode!r}")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a positive integer, got {count!r}")
    height, width = images.shape[2:]
    seeds = seeds.to(images.device)
    rectangles = augment_torch.draw_erasing(seeds, height, width, probability, area, ratio, count)
    if not images.is_contiguous():
        return images.copy_(pixel_module(images).erase(images.contiguous(), rectangles, seeds, mode))
    return pixel_module(images).erase(images, rectangles, seeds, mode)


def pixel_module(images: Tensor):
    """The module that works on these images' pixels."""
    if takes_triton(images):
        from .triton import launch as augment_triton

        return augment_triton
    return augment_torch


__all__ = [
    "RaggedImages",
    "apply_op",
    "draw_rand_augment",
    "normalise",
    "parse_rand_augment",
    "rand_augment",
    "random_erasing",
    "resize_crops",
]
