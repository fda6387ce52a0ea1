"""Launches of the augmentation kernels: what each layer does to each sample, and where the results go."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..plain import augment as augment_torch
from ..plain.augment import NOISE_OFFSET, Triple
from ..plain.geometry import Colour
from ..plain.ops import box_weights
from ..rand_augment import OP_NAMES, RandAugmentDraw
from .blur import blur_kernel
from .erase import CHANNEL_NOISE, PIXEL_NOISE, ZERO, erase_kernel
from .layers import TO_BYTES, TO_SCRATCH, TO_VIEW, layer_kernel, maps_kernel
from .tables import tables_kernel

_BLOCK = 512
_GEOMETRIC_BLOCK = 256
_TABLE_BLOCK = 2048
# Operation without "Increasing" or "Original" -> (what a layer does, how its table is made).
_KINDS = {
    "Invert": (1, 1), "Posterize": (1, 2), "Solarize": (1, 3), "SolarizeAdd": (1, 4), "Brightness": (1, 5),
    "Contrast": (1, 6), "AutoContrast": (1, 7), "Equalize": (1, 8), "Color": (2, 0), "Sharpness": (3, 0),
    "Desaturate": (4, 0), "GaussianBlur": (5, 0),
    "Rotate": (6, 0), "ShearX": (7, 0), "ShearY": (8, 0), "TranslateXRel": (9, 0), "TranslateYRel": (10, 0),
}  # fmt: skip
_MODES = {"pixel": PIXEL_NOISE.value, "rand": CHANNEL_NOISE.value, "const": ZERO.value}


class Erasing(NamedTuple):
    """Rectangles int32 [N, count, 4] (`augment_torch.draw_erasing`), seeds int64 [N], and the mode."""

    rectangles: Tensor
    seeds: Tensor
    mode: str


def apply_op(images: Tensor, name: str, value: Tensor, resample: str, fill: Colour) -> Tensor:
    """As `augment_torch.apply_op`."""
    op = torch.full((len(images), 1), OP_NAMES.index(name), device=images.device)
    draw = RandAugmentDraw(op, torch.ones_like(op, dtype=torch.bool), value[:, None], name == "GaussianBlur")
    return rand_augment(images, draw, resample, fill)


def rand_augment(images: Tensor, draw: RandAugmentDraw, resample: str, fill: Colour) -> Tensor:
    """As `augment_torch.rand_augment`."""
    images = images.contiguous()
    out = torch.empty_like(images)
    _run(images, None, draw, resample, fill, out, TO_BYTES.value)
    return out


def train_views(
    images: Tensor,
    flip: Tensor | None,
    draw: RandAugmentDraw | None,
    normal: tuple[Triple, Triple],
    erasing: Erasing | None,
    teacher_size: int,
    dtype: torch.dtype,
    resample: str,
    fill: Colour,
) -> tuple[Tensor, Tensor]:
    """Finished views in the last layer's pass: `dtype` [N, 3, H, W] and [N, 3, teacher_size, teacher_size].

    normal: mean and standard deviation. teacher_size 0 makes no teacher view; else H = W must be an odd multiple of it.
    """
    images = images.contiguous()
    count, height, width, _ = images.shape
    out = torch.empty(count, 3, height, width, dtype=dtype, device=images.device)
    teacher = torch.empty(count, 3, teacher_size, teacher_size, dtype=dtype, device=images.device)
    _run(
        images,
        flip,
        draw,
        resample,
        fill,
        out,
        TO_VIEW.value,
        (teacher, _normal_table(*normal, images.device), erasing),
    )
    return out, teacher


def normalise(images: Tensor, mean: Triple, std: Triple, flip: Tensor | None, dtype: torch.dtype) -> Tensor:
    """As `augment_torch.normalise`."""
    return train_views(images, flip, None, (mean, std), None, 0, dtype, "bicubic", (0, 0, 0))[0]


def erase(images: Tensor, rectangles: Tensor, seeds: Tensor, mode: str) -> Tensor:
    """As `augment_torch.erase`, for contiguous images."""
    count, channels, height, width = images.shape
    grid = (count * triton.cdiv(height * width, _BLOCK),)
    erase_kernel[grid](
        images, rectangles, seeds, channels, width, height * width, rectangles.shape[1], _MODES[mode], NOISE_OFFSET,
        _BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    return images


def _run(
    images: Tensor,
    flip: Tensor | None,
    draw: RandAugmentDraw | None,
    resample: str,
    fill: Colour,
    out: Tensor,
    target: int,
    view: tuple[Tensor, Tensor, Erasing | None] | None = None,
) -> None:
    """All layers; the last one writes to `out`, which for samples without an operation is a plain copy."""
    count, height, width, _ = images.shape
    if count == 0:
        return
    device = images.device
    applied, kind, table_kind, value = _steps(draw, count, device)
    layers, blurs = kind.shape[1], draw is not None and draw.blurs
    if flip is None:
        flip = torch.zeros(count, dtype=torch.uint8, device=device)
    flip = flip.to(device).contiguous().view(torch.uint8)
    first = torch.empty_like(images) if layers > 1 else images
    second = torch.empty_like(images) if layers > 2 else first
    tables = torch.empty(count, 3, 256, dtype=torch.uint8, device=device)
    teacher, norm, erasing = view or (out, out, None)
    erasing = erasing or Erasing(table_kind[:, :0, None], table_kind, "const")
    side = teacher.shape[-1] if view else 0
    step = height // side if side else 0
    maps = torch.empty(count, layers, 6, dtype=torch.float64, device=device)
    if draw is not None:
        maps_kernel[(count * layers,)](kind, value, maps, height, width, enable_fp_fusion=False)
    places = (images, first, second)
    blurred = [torch.empty_like(images) for _ in range(2)] if blurs else [images]
    box = box_weights(value.flatten()).view(count, layers, 3) if blurs else None
    for layer in range(layers):
        if draw is not None:
            tables_kernel[(count, 3)](
                *places, applied, table_kind, value, tables, layers, layer, height * width, _TABLE_BLOCK,
                enable_fp_fusion=False,
            )  # fmt: skip
        if blurs:
            _blur(places, flip, applied, kind, box, blurred, layer)
        last = layer == layers - 1
        for geometric, block in ((False, _BLOCK), (True, _GEOMETRIC_BLOCK))[: 1 if draw is None else 2]:
            launched = target if last else TO_SCRATCH.value
            layer_kernel[(count * triton.cdiv(height * width, block),)](
                *places, flip, applied, kind, value, tables, maps, blurred[-1], out, teacher, norm, erasing.rectangles,
                erasing.seeds, layers, layer, height, width, side, *fill, geometric, blurs and not geometric,
                launched, resample == "bicubic", step if last else 0, erasing.rectangles.shape[1] if last else 0,
                _MODES[erasing.mode], NOISE_OFFSET, block, enable_fp_fusion=False,
            )  # fmt: skip


def _steps(draw: RandAugmentDraw | None, count: int, device: torch.device) -> tuple[Tensor, ...]:
    """What the layers are to do, [N, layers] each: operations before, kind, kind of table (int32), value (float64)."""
    if draw is None:
        nothing = torch.zeros(count, 1, dtype=torch.int32, device=device)
        return nothing, nothing, nothing, torch.zeros(count, 1, dtype=torch.float64, device=device)
    flags = draw.applied.to(torch.int32)
    rows = draw.op.masked_fill(draw.applied.logical_not(), len(OP_NAMES)).flatten()
    kind, table_kind = (kinds.index_select(0, rows).view_as(flags) for kinds in _kinds(device))
    return flags.cumsum(1, dtype=torch.int32) - flags, kind, table_kind, draw.value.contiguous()


def _blur(
    places: tuple[Tensor, Tensor, Tensor],
    flip: Tensor,
    applied: Tensor,
    kind: Tensor,
    box: Tensor,
    buffers: list[Tensor],
    layer: int,
) -> None:
    """Blurs the samples whose operation of this layer it is, into the last of two buffers."""
    count, height, width, _ = places[0].shape
    grid = (count * triton.cdiv(height * width, _BLOCK),)
    for turn in range(6):
        blur_kernel[grid](
            *places, flip, applied, kind, box, buffers[(turn + 1) % 2], buffers[turn % 2], kind.shape[1], layer, height,
            width, turn == 0, turn >= 3, _BLOCK, enable_fp_fusion=False,
        )  # fmt: skip


@lru_cache(maxsize=16)
def _kinds(device: torch.device) -> tuple[Tensor, Tensor]:
    """int32 [operations + 1] twice: the two kinds of each of OP_NAMES, and of an operation that is not applied."""
    plain = [name.removesuffix("Increasing").removesuffix("Original") for name in OP_NAMES]
    kinds = zip(*(_KINDS[name] for name in plain), strict=True)
    return tuple(torch.tensor([*column, 0], dtype=torch.int32, device=device) for column in kinds)


@lru_cache(maxsize=8)
def _normal_table(mean: Triple, std: Triple, device: torch.device) -> Tensor:
    """float32 [3, 256]: the normalised value of every byte in every channel."""
    levels = torch.arange(256, dtype=torch.uint8, device=device).view(1, 256, 1, 1).expand(1, 256, 1, 3)
    return augment_torch.normalise(levels, mean, std, None, torch.float32)[0, :, :, 0].contiguous()
