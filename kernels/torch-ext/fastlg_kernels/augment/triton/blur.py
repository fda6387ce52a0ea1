"""Gaussian blur on the GPU: one pass of Pillow's box filter along one axis, run six times for the samples that blur."""

from __future__ import annotations

import triton
import triton.language as tl

from .tables import BLUR, load_pixel, source_of


@triton.jit(do_not_specialize=["height", "width"])
def blur_kernel(
    input_ptr, a_ptr, b_ptr, flip_ptr, applied_ptr, kind_ptr, box_ptr, from_ptr, to_ptr, layers, layer, height, width,
    FIRST: tl.constexpr, DOWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """uint8 [N, H, W, 3] from one buffer to the other; the FIRST pass reads where the sample's image lies.

    box: int64 [N, layers, 3] of `augment_ops_torch.box_weights`. DOWN runs along the columns.
    """
    pixels = height * width
    blocks = tl.cdiv(pixels, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    if tl.load(kind_ptr + n * layers + layer) != BLUR:
        return
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < pixels
    row, column = pixel // width, pixel % width
    if FIRST:
        before = tl.load(applied_ptr + n * layers + layer)
        source = source_of(input_ptr, a_ptr, b_ptr, before, n, pixels * 3)
        mirrored = (tl.load(flip_ptr + n) != 0) & (before == 0)
    else:
        source = from_ptr + n * pixels * 3
        mirrored = False
    box = box_ptr + (n * layers + layer) * 3
    radius = tl.load(box).to(tl.int32)
    inside, beyond = tl.load(box + 1), tl.load(box + 2)
    for channel in tl.static_range(3):
        total = tl.zeros([BLOCK], dtype=tl.int64)
        for step in range(-radius - 1, radius + 2):
            near_row, near_column = row, column
            if DOWN:
                near_row = tl.minimum(tl.maximum(row + step, 0), height - 1)
            else:
                near_column = tl.minimum(tl.maximum(column + step, 0), width - 1)
            value = load_pixel(source, near_row, near_column, channel, width, mirrored, mask).to(tl.int64)
            total += value * tl.where((step < -radius) | (step > radius), beyond, inside)
        blurred = ((total + (1 << 23)) >> 24).to(tl.uint8)
        tl.store(to_ptr + (n * pixels + pixel) * 3 + channel, blurred, mask=mask)
