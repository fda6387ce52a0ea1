"""The whole of timm's train transform behind the crop, and the teacher's view, in as few passes as there can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .api import ERASED_AREA, ERASED_RATIO
from .inputs import check_flip, check_images, check_resample, check_seeds, fill_colour, takes_triton, three
from .plain import augment as augment_torch
from .rand_augment import RandAugmentDraw, RandAugmentSpec, draw_color_jitter, draw_rand_augment

_DRAWN_AT_ONCE = 1 << 16  # samples: what is thrown away between the draws takes some 2 kB each


class ViewDraw(NamedTuple):
    """What `train_views` does to each sample, drawn by `draw_views`: a few bytes per sample on one device.

    Attributes:
        op, applied, value: int32, bool and float64 [N, layers], as in `RandAugmentDraw`: RandAugment's layers, then
            colour jitter's; no layers where there is neither.
        rectangles: int32 [N, 1, 4], what is erased (top, left, height, width; height 0 for nothing); [N, 0, 4] where
            nothing can be.
        noise_seeds: int64 [N], of the noise in them.
        size: (height, width) in pixels of the images it is for.
        blurs: whether a GaussianBlur may be among the operations.
    """

    op: Tensor
    applied: Tensor
    value: Tensor
    rectangles: Tensor
    noise_seeds: Tensor
    size: tuple[int, int]
    blurs: bool

    def rows(self, index: Tensor) -> ViewDraw:
        """The draws of the samples at integer ``index`` [M], on the same device; no host synchronisation."""
        return ViewDraw(*(part.index_select(0, index) for part in self[:5]), self.size, self.blurs)


def draw_views(
    augment_seeds: Tensor,
    erase_seeds: Tensor,
    size: int | tuple[int, int],
    *,
    spec: str | RandAugmentSpec | None = "rand-m9-mstd0.5-inc1",
    erase: float = 0.25,
    jitter_seeds: Tensor | None = None,
    jitter: Sequence[float] = (0.0, 0.0, 0.0),
) -> ViewDraw:
    """All that `train_views` draws, for any number of samples at once: make it once per epoch, take rows per batch.

    Drawing is some two hundred launches of tiny kernels whatever the number of samples, which is more than all the
    work on a batch's pixels.

    Args:
        augment_seeds, erase_seeds: int64 [N], of different purposes (`rng.sample_seeds`).
        size: of the images in pixels, one side of a square or (height, width).
        spec, erase: as in `train_views`.
        jitter_seeds, jitter: int64 [N] of a third purpose, and the amounts of `draw_color_jitter`, whose operations
            follow RandAugment's as further layers; all 0 for none.

    Returns:
        ViewDraw on the seeds' device; no host synchronisation. A sample's row is a pure function of its seeds.

    Raises:
        TypeError: seeds of a wrong dtype. ValueError: a wrong shape or size, a bad spec, an erase outside 0..1.
    """
    count = augment_seeds.shape[0] if isinstance(augment_seeds, Tensor) and augment_seeds.dim() else 0
    jitter_seeds = erase_seeds if jitter_seeds is None and not any(jitter) else jitter_seeds
    for seeds in (augment_seeds, erase_seeds, jitter_seeds):
        check_seeds(seeds, count)
    height, width = size if isinstance(size, tuple) else (size, size)
    if any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in (height, width)):
        raise ValueError(f"size must be a positive number of pixels or (height, width), got {size!r}")
    if not 0.0 <= erase <= 1.0:
        raise ValueError(f"erase must be a probability in 0..1, got {erase}")
    parts = []
    drawn_at_once = (own.split(_DRAWN_AT_ONCE) for own in (augment_seeds, erase_seeds, jitter_seeds))
    for seeds, noise_seeds, own_jitter in zip(*drawn_at_once, strict=True):
        if spec is None:
            op = seeds.new_empty(len(seeds), 0, dtype=torch.int32)
            draw = RandAugmentDraw(op, op.to(torch.bool), op.to(torch.float64), False)
        else:
            draw = draw_rand_augment(seeds, spec)
        if any(jitter):
            more = draw_color_jitter(own_jitter, jitter)
            both = (torch.cat((one.to(two.dtype), two), dim=1) for one, two in zip(draw[:3], more[:3], strict=True))
            draw = RandAugmentDraw(*both, draw.blurs)
        if erase > 0:
            rectangles = augment_torch.draw_erasing(noise_seeds, height, width, erase, ERASED_AREA, ERASED_RATIO, 1)
        else:
            rectangles = seeds.new_empty(len(seeds), 0, 4, dtype=torch.int32)
        parts.append((draw.op.to(torch.int32), draw.applied, draw.value, rectangles))
    columns = parts[0] if len(parts) == 1 else (torch.cat(column) for column in zip(*parts, strict=True))
    return ViewDraw(*columns, erase_seeds, (height, width), draw.blurs)


def train_views(
    images: Tensor,
    augment_seeds: Tensor | None,
    erase_seeds: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    flip: Tensor | None = None,
    spec: str | RandAugmentSpec | None = "rand-m9-mstd0.5-inc1",
    erase: float = 0.25,
    draw: ViewDraw | None = None,
    resample: str = "bicubic",
    teacher_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor | None]:
    """timm's train transform behind the crop: flip, RandAugment, normalise, erase; and a teacher's view cut from it.

    The same as `rand_augment`, `normalise` and `random_erasing` one after the other, bit for bit up to the erasing's
    noise; on a GPU the last of RandAugment's operations, normalising, erasing and both views are one pass over memory.

    Args:
        images: uint8 [N, H, W, 3].
        augment_seeds, erase_seeds: int64 [N], of different purposes (`rng.sample_seeds`); both None with ``draw``.
        mean, std: three numbers each, for values in 0..1; the mean is also RandAugment's fill colour, as in timm.
        flip: bool [N]; True mirrors the image left to right, before all else.
        spec: timm's RandAugment string or its parsed form, or None for none.
        erase: probability of `random_erasing` in its default form (one rectangle of normal noise per pixel).
        draw: what `draw_views` drew for these N images, in place of seeds, ``spec`` and ``erase``, which then count for
            nothing; on the images' device. The pixels are the same either way.
        resample: "bicubic" or "bilinear", for RandAugment's geometric operations.
        teacher_size: side of the teacher's view in pixels, or None for none; see `teacher_view`.
        dtype: floating-point type of both views.

    Returns:
        The student's view [N, 3, H, W] and the teacher's [N, 3, teacher_size, teacher_size], or None.

    Raises:
        TypeError, ValueError: as `draw_views`, `rand_augment` and `normalise`, or a ``draw`` for other images.
    """
    count = check_images(images)
    check_flip(flip, count)
    check_resample(resample)
    mean, std = three(mean, "mean"), three(std, "std")
    if teacher_size is not None and (not isinstance(teacher_size, int) or teacher_size < 1):
        raise ValueError(f"teacher_size must be a positive number of pixels or None, got {teacher_size!r}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, got {dtype}")
    size = tuple(images.shape[1:3])
    if draw is None:
        for seeds in (augment_seeds, erase_seeds):
            check_seeds(seeds, count)
        draw = draw_views(augment_seeds.to(images.device), erase_seeds.to(images.device), size, spec=spec, erase=erase)
    elif augment_seeds is not None or erase_seeds is not None:
        raise ValueError("give seeds or draw, not both: a draw holds what the seeds would draw")
    elif (len(draw.op), draw.size) != (count, size):
        raise ValueError(f"draw is for {len(draw.op)} images of {draw.size} pixels, got {count} of {size}")
    fill = fill_colour([min(255, max(0, round(255 * value))) for value in mean])
    chosen = RandAugmentDraw(draw.op, draw.applied, draw.value, draw.blurs) if draw.op.shape[1] else None
    if not takes_triton(images):
        views = images if flip is None else augment_torch.mirror(images.clone(), flip, 2)
        views = views if chosen is None else augment_torch.rand_augment(views, chosen, resample, fill)
        views = augment_torch.normalise(views, mean, std, None, dtype)
        views = augment_torch.erase(views, draw.rectangles, draw.noise_seeds, "pixel")
        return views, None if teacher_size is None else teacher_view(views, teacher_size)
    from .triton.launch import Erasing
    from .triton.launch import train_views as run

    erasing = Erasing(draw.rectangles, draw.noise_seeds, "pixel")
    fused = teacher_size is not None and _step(images.shape[1:3], teacher_size) > 0
    views, teacher = run(
        images, flip, chosen, (mean, std), erasing, teacher_size if fused else 0, dtype, resample, fill
    )
    return views, teacher if fused else None if teacher_size is None else teacher_view(views, teacher_size)


def teacher_view(views: Tensor, size: int) -> Tensor:
    """Finished views [N, 3, H, W] reduced to [N, 3, size, size] as the reference code does.

    That is bilinear without antialias (align_corners=False): of a square whose side is an odd multiple of ``size``,
    exactly every (H / size)-th pixel, the middle one of its block (``x[..., 3::7, 3::7]`` for 224 -> 32). Equal sizes
    return ``views`` itself. Any floating dtype, which the result has. Raises ValueError for a size below 1 px.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a positive number of pixels, got {size!r}")
    step = _step(views.shape[-2:], size)
    if step:
        return views[..., step // 2 :: step, step // 2 :: step].contiguous()
    return F.interpolate(views, size=(size, size), mode="bilinear", align_corners=False)


def _step(shape: Sequence[int], size: int) -> int:
    """The odd number of pixels from one pixel of the teacher's view to the next; 0 where it is interpolated."""
    step, rest = divmod(shape[1], size)
    return step if shape[0] == shape[1] and rest == 0 and step % 2 == 1 else 0
