"""Crop and resize on a GPU: the two passes of plain/resize.py, in Pillow's int32 arithmetic and bit for bit the same.

The first pass writes 8-bit lines to scratch, the second reads them; both are sums over a window of taps whose
coefficients a third kernel makes in float64, with floating-point contraction off so that they are Pillow's to the bit.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..inputs import RaggedImages
from ..plain.resize import COEFFICIENT_BITS, SUPPORT_PX, vertical_first

_BLOCK = 1024


@triton.jit
def _filter(distance, CUBIC: tl.constexpr):
    x = tl.abs(distance)
    if CUBIC:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    return tl.maximum(1.0 - x, 0.0)


# Lines and taps follow the largest crop of a batch: a kernel compiled for one of their values would be compiled again
# for the next.
@triton.jit(do_not_specialize=["taps", "size"])
def coefficients_kernel(
    length_ptr, start_ptr, coefficient_ptr, taps, size, SUPPORT: tl.constexpr, CUBIC: tl.constexpr, BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """First source pixel and coefficients of a line's output pixels: int32 [rows, size] and [rows, size, taps]."""
    row = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    length = tl.load(length_ptr + row)
    scale = length.to(tl.float64) / size.to(tl.float64)
    filter_scale = tl.maximum(scale, 1.0)
    support = SUPPORT * filter_scale
    inside = position < size
    centre = (tl.minimum(position, size - 1).to(tl.float64) + 0.5) * scale
    start = tl.maximum((centre - support + 0.5).to(tl.int32), 0)
    stop = tl.minimum((centre + support + 0.5).to(tl.int32), length.to(tl.int32))
    narrow = 1.0 / filter_scale
    total = tl.zeros([BLOCK], dtype=tl.float64)
    for tap in range(taps):
        weight = _filter(((start + tap).to(tl.float64) - centre + 0.5) * narrow, CUBIC)
        total += tl.where(start + tap < stop, weight, 0.0)
    tl.store(start_ptr + row * size + position, start, mask=inside)
    for tap in range(taps):
        weight = _filter(((start + tap).to(tl.float64) - centre + 0.5) * narrow, CUBIC)
        weight = tl.where(start + tap < stop, weight, 0.0) / total * (1 << BITS)
        rounded = (weight + tl.where(weight < 0.0, -0.5, 0.5)).to(tl.int32)
        tl.store(coefficient_ptr + (row * size + position) * taps + tap, rounded, mask=inside)


@triton.jit(do_not_specialize=["lines_max", "taps"])
def first_pass_kernel(
    source_ptr, place_ptr, shape_ptr, start_ptr, coefficient_ptr, scratch_ptr, lines_max, taps, size,
    BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Resamples each line of a crop: bytes -> uint8 [N, lines_max, size, 3].

    place int64 [N, 3]: first byte of the crop, bytes from line to line and from pixel to pixel; shape int32 [N, 2]:
    number of lines and pixels of a line. "Lines" are rows, or columns where those are resampled first.
    """
    n = tl.program_id(0).to(tl.int64)
    lines, length = tl.load(shape_ptr + n * 2), tl.load(shape_ptr + n * 2 + 1)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = element < lines * size * 3
    channel, position, line = element % 3, element // 3 % size, element // 3 // size
    first, line_bytes, pixel_bytes = (
        tl.load(place_ptr + n * 3), tl.load(place_ptr + n * 3 + 1), tl.load(place_ptr + n * 3 + 2),
    )  # fmt: skip
    start = tl.load(start_ptr + n * size + position, mask=inside, other=0)
    base = first + line * line_bytes + channel
    total = tl.full([BLOCK], 1 << (BITS - 1), dtype=tl.int32)
    for tap in range(taps):
        # A window's unused end has coefficient 0 and may point past the crop.
        pixel = tl.minimum(start + tap, length - 1)
        value = tl.load(source_ptr + base + pixel * pixel_bytes, mask=inside, other=0)
        weight = tl.load(coefficient_ptr + (n * size + position) * taps + tap, mask=inside, other=0)
        total += value.to(tl.int32) * weight
    result = tl.minimum(tl.maximum(total >> BITS, 0), 255)
    tl.store(scratch_ptr + n * lines_max * size * 3 + element, result.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["lines_max", "taps"])
def second_pass_kernel(
    scratch_ptr, shape_ptr, turned_ptr, flip_ptr, start_ptr, coefficient_ptr, out_ptr, lines_max, taps, size,
    BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Resamples across the lines, puts columns-first crops upright and mirrors: -> uint8 [N, size, size, 3]."""
    n = tl.program_id(0).to(tl.int64)
    lines = tl.load(shape_ptr + n * 2)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = element < size * size * 3
    within, position = element % (size * 3), element // (size * 3)
    start = tl.load(start_ptr + n * size + position, mask=inside, other=0)
    total = tl.full([BLOCK], 1 << (BITS - 1), dtype=tl.int32)
    for tap in range(taps):
        line = tl.minimum(start + tap, lines - 1)
        value = tl.load(scratch_ptr + (n * lines_max + line) * (size * 3) + within, mask=inside, other=0)
        weight = tl.load(coefficient_ptr + (n * size + position) * taps + tap, mask=inside, other=0)
        total += value.to(tl.int32) * weight
    result = tl.minimum(tl.maximum(total >> BITS, 0), 255)
    turned, flip = tl.load(turned_ptr + n) != 0, tl.load(flip_ptr + n) != 0
    across, channel = within // 3, within % 3
    y, x = tl.where(turned, across, position), tl.where(turned, position, across)
    x = tl.where(flip, size - 1 - x, x)
    tl.store(out_ptr + n * size * size * 3 + (y * size + x) * 3 + channel, result.to(tl.uint8), mask=inside)


def resize_crops(
    images: Tensor | RaggedImages, boxes: Tensor, size: int, interpolation: str, flip: Tensor | None
) -> Tensor:
    """As `resize_torch.resize_crops`. Boxes on the GPU cost a synchronisation: their extremes size the scratch.

    Where each crop lies is counted on the CPU where boxes, offsets and sizes are there: on the GPU it is a launch for
    every step.
    """
    if isinstance(images, Tensor) and images.stride(3) != 1:
        images = images.contiguous()
    device = images.data.device
    out = torch.empty(len(boxes), size, size, 3, dtype=torch.uint8, device=device)
    if not len(boxes):
        return out
    turned = vertical_first(boxes, size)
    extremes = torch.stack((torch.where(turned[:, None], boxes[:, 3:], boxes[:, 2:3]).amax(), boxes[:, 2:].amax()))
    lines_max, longest = extremes.tolist()
    taps = math.ceil(2 * SUPPORT_PX[interpolation] * max(1.0, longest / size))
    is_here = isinstance(images, Tensor) or images.offsets.device == images.sizes.device == boxes.device
    if not is_here:
        boxes, turned = boxes.to(device, non_blocking=True), turned.to(device, non_blocking=True)
    place, shape = _places(images, boxes, turned)
    flip = torch.zeros_like(turned) if flip is None else flip.contiguous()
    numbers = (place, shape, shape.flip(1).t().contiguous(), turned.view(torch.uint8), flip.view(torch.uint8))
    place, shape, lengths, *flags = (part.to(device, non_blocking=True) for part in numbers)
    start, coefficients = make_coefficients(lengths, size, taps, interpolation)
    scratch = torch.empty(len(boxes), lines_max, size, 3, dtype=torch.uint8, device=device)
    tail = (lines_max, taps, size, COEFFICIENT_BITS, _BLOCK)
    grid = (len(boxes), triton.cdiv(lines_max * size * 3, _BLOCK))
    first_pass_kernel[grid](
        images.data, place, shape, start[0], coefficients[0], scratch, *tail, enable_fp_fusion=False
    )
    grid = (len(boxes), triton.cdiv(size * size * 3, _BLOCK))
    second_pass_kernel[grid](scratch, shape, *flags, start[1], coefficients[1], out, *tail, enable_fp_fusion=False)
    return out


def make_coefficients(lengths: Tensor, size: int, taps: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """int32 start [..., size] and coefficients [..., size, taps] for int32 lengths [...] in pixels."""
    start = torch.empty(*lengths.shape, size, dtype=torch.int32, device=lengths.device)
    coefficients = torch.empty(*start.shape, taps, dtype=torch.int32, device=lengths.device)
    block = min(256, triton.next_power_of_2(size))
    coefficients_kernel[(lengths.numel(), triton.cdiv(size, block))](
        lengths, start, coefficients, taps, size, SUPPORT_PX[interpolation], interpolation == "bicubic",
        COEFFICIENT_BITS, block, enable_fp_fusion=False,
    )  # fmt: skip
    return start, coefficients


def _places(images: Tensor | RaggedImages, boxes: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """Where each crop lies: int64 [N, 3] (first byte, bytes per line and pixel), int32 [N, 2] (lines, pixels)."""
    y, x, height, width = boxes.unbind(1)
    if isinstance(images, RaggedImages):
        first, row_bytes, pixel_bytes = images.offsets.to(boxes.device), images.sizes[:, 1].to(boxes.device) * 3, 3
    else:
        first = torch.arange(len(boxes), device=boxes.device) * images.stride(0)
        row_bytes, pixel_bytes = images.stride(1), images.stride(2)
    rows = torch.zeros_like(y) + row_bytes
    columns = torch.full_like(y, pixel_bytes)
    place = (first + y * rows + x * columns, torch.where(turned, columns, rows), torch.where(turned, rows, columns))
    shape = (torch.where(turned, width, height), torch.where(turned, height, width))
    return torch.stack(place, dim=1), torch.stack(shape, dim=1).to(torch.int32)
