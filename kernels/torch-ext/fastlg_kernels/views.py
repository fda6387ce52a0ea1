"""The whole of timm's train transform behind the crop, and the teacher's view, in as few passes as there can be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import augment_torch
from .augment import ERASED_AREA, ERASED_RATIO, normalise, rand_augment, random_erasing
from .augment_checks import check_flip, check_images, check_seeds, fill_colour, three
from .images import takes_triton
from .rand_augment import RandAugmentSpec, draw_rand_augment


def train_views(
    images: Tensor,
    augment_seeds: Tensor,
    erase_seeds: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    flip: Tensor | None = None,
    spec: str | RandAugmentSpec | None = "rand-m9-mstd0.5-inc1",
    erase: float = 0.25,
    teacher_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor | None]:
    """timm's train transform behind the crop: flip, RandAugment, normalise, erase; and a teacher's view cut from it.

    The same as `rand_augment`, `normalise` and `random_erasing` one after the other, bit for bit up to the erasing's
    noise; on a GPU the last of RandAugment's operations, normalising, erasing and both views are one pass over memory.

    Args:
        images: uint8 [N, H, W, 3].
        augment_seeds, erase_seeds: int64 [N], of different purposes (`rng.sample_seeds`).
        mean, std: three numbers each, for values in 0..1; the mean is also RandAugment's fill colour, as in timm.
        flip: bool [N]; True mirrors the image left to right, before all else.
        spec: timm's RandAugment string or its parsed form, or None for none.
        erase: probability of `random_erasing` in its default form (one rectangle of normal noise per pixel).
        teacher_size: side of the teacher's view in pixels, or None for none: bilinear without antialias
            (align_corners=False), which at an odd ratio is every ratio-th pixel, as the reference code has it.
        dtype: floating-point type of both views.

    Returns:
        The student's view [N, 3, H, W] and the teacher's [N, 3, teacher_size, teacher_size], or None.

    Raises:
        TypeError, ValueError: as `rand_augment`, `normalise` and `random_erasing`.
    """
    count = check_images(images)
    for seeds in (augment_seeds, erase_seeds):
        check_seeds(seeds, count)
    check_flip(flip, count)
    mean, std = three(mean, "mean"), three(std, "std")
    if not 0.0 <= erase <= 1.0:
        raise ValueError(f"erase must be a probability in 0..1, got {erase}")
    if teacher_size is not None and (not isinstance(teacher_size, int) or teacher_size < 1):
        raise ValueError(f"teacher_size must be a positive number of pixels or None, got {teacher_size!r}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {dtype}")
    fill = fill_colour([min(255, max(0, round(255 * value))) for value in mean])
    height, width = images.shape[1:3]
    if not takes_triton(images):
        views = images if flip is None else augment_torch.mirror(images.clone(), flip, 2)
        views = views if spec is None else rand_augment(views, augment_seeds, spec=spec, fill=fill)
        views = random_erasing(normalise(views, mean, std, dtype=dtype), erase_seeds, probability=erase)
        return views, None if teacher_size is None else _teacher_view(views, teacher_size)
    from .augment_triton import Erasing
    from .augment_triton import train_views as run

    augment_seeds, erase_seeds = augment_seeds.to(images.device), erase_seeds.to(images.device)
    draw = None if spec is None else draw_rand_augment(augment_seeds, spec)
    rectangles = augment_torch.draw_erasing(erase_seeds, height, width, erase, ERASED_AREA, ERASED_RATIO, 1)
    erasing = Erasing(rectangles, erase_seeds, "pixel")
    step, rest = divmod(height, teacher_size or height)
    fused = teacher_size is not None and height == width and rest == 0 and step % 2 == 1
    views, teacher = run(images, flip, draw, (mean, std), erasing, teacher_size if fused else 0, dtype, "bicubic", fill)
    return views, teacher if fused else None if teacher_size is None else _teacher_view(views, teacher_size)


def _teacher_view(views: Tensor, size: int) -> Tensor:
    step, rest = divmod(views.shape[-1], size)
    if views.shape[-2] == views.shape[-1] and rest == 0 and step % 2 == 1:
        return views[..., step // 2 :: step, step // 2 :: step].contiguous()
    return F.interpolate(views, size=(size, size), mode="bilinear", align_corners=False)
