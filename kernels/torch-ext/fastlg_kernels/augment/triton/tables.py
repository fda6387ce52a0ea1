"""Look-up tables of the augmentation operations that are one, made on the GPU; and what its kernels share.

Kernels run with floating-point contraction off: Pillow rounds after every step, and so do these. A sample's image lies
in one of three places, by the number of operations already applied to it: the input (read mirrored where it is to be
flipped), and two scratch buffers in turn. Samples that no operation hits are not touched until the last pass.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What a layer does to a sample, and how its table is made.
NOTHING, TABLE, COLOR, SHARPNESS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
DESATURATE, BLUR = tl.constexpr(4), tl.constexpr(5)
ROTATE, SHEAR_X, SHEAR_Y = tl.constexpr(6), tl.constexpr(7), tl.constexpr(8)
TRANSLATE_X, TRANSLATE_Y = tl.constexpr(9), tl.constexpr(10)
INVERT, POSTERIZE, SOLARIZE, SOLARIZE_ADD = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)
BRIGHTNESS, CONTRAST, AUTO_CONTRAST, EQUALIZE = tl.constexpr(5), tl.constexpr(6), tl.constexpr(7), tl.constexpr(8)


@triton.jit
def source_of(input_ptr, a_ptr, b_ptr, applied, n, bytes_):
    """Where the sample's image lies after `applied` operations."""
    pointer = input_ptr
    if applied > 0:
        pointer = a_ptr
        if applied % 2 == 0:
            pointer = b_ptr
    return pointer + n * bytes_


@triton.jit
def load_pixel(source, row, column, channel, width, mirrored, mask):
    column = tl.where(mirrored, width - 1 - column, column)
    return tl.load(source + (row * width + column) * 3 + channel, mask=mask, other=0).to(tl.int32)


@triton.jit
def luma(red, green, blue):
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


@triton.jit
def cut(value):
    """Clipped to 0..255 and cut towards zero."""
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32)


@triton.jit
def blend(degenerate, value, factor):
    degenerate, value = degenerate.to(tl.float32), value.to(tl.float32)
    return cut(degenerate + (value - degenerate) * factor)


@triton.jit(do_not_specialize=["pixels"])
def tables_kernel(
    input_ptr, a_ptr, b_ptr, applied_ptr, kind_ptr, value_ptr, table_ptr, layers, layer, pixels, BLOCK: tl.constexpr,
):  # fmt: skip
    """Look-up tables uint8 [N, 3, 256] of the samples whose operation is one; a program makes one channel's."""
    n, channel = tl.program_id(0).to(tl.int64), tl.program_id(1)
    kind = tl.load(kind_ptr + n * layers + layer)
    if kind == 0:
        return
    value = tl.load(value_ptr + n * layers + layer)
    factor = value.to(tl.float32)
    level = tl.arange(0, 256)
    table = level
    if kind == INVERT:
        table = 255 - level
    if kind == POSTERIZE:
        dropped = 8 - tl.minimum(tl.maximum(value, 0.0), 8.0).to(tl.int32)
        table = level & (255 << dropped)
    if kind == SOLARIZE:
        table = tl.where(level.to(tl.float64) < value, level, 255 - level)
    if kind == SOLARIZE_ADD:
        table = tl.where(level < 128, tl.minimum(level + value.to(tl.int32), 255), level)
    if kind == BRIGHTNESS:
        table = blend(level * 0, level, factor)
    source = source_of(input_ptr, a_ptr, b_ptr, tl.load(applied_ptr + n * layers + layer), n, pixels * 3)
    if kind == CONTRAST:
        grey = tl.zeros([BLOCK], dtype=tl.int64)
        for first in range(0, pixels, BLOCK):
            pixel = first + tl.arange(0, BLOCK)
            inside = pixel < pixels
            red = tl.load(source + pixel * 3, mask=inside, other=0).to(tl.int32)
            green = tl.load(source + pixel * 3 + 1, mask=inside, other=0).to(tl.int32)
            blue = tl.load(source + pixel * 3 + 2, mask=inside, other=0).to(tl.int32)
            grey += tl.where(inside, luma(red, green, blue), 0)
        mean = (tl.sum(grey, axis=0).to(tl.float64) / pixels.to(tl.float64) + 0.5).to(tl.int32)
        table = blend(level * 0 + mean, level, factor)
    if kind >= AUTO_CONTRAST:
        histogram = tl.zeros([256], dtype=tl.int32)
        for first in range(0, pixels, BLOCK):
            pixel = first + tl.arange(0, BLOCK)
            values = tl.load(source + pixel * 3 + channel, mask=pixel < pixels, other=0)
            histogram += tl.histogram(values.to(tl.int32), 256)
        # The padding of the last block was counted as zeros.
        histogram -= tl.where(level == 0, (pixels + BLOCK - 1) // BLOCK * BLOCK - pixels, 0)
        low = tl.min(tl.where(histogram > 0, level, 255), axis=0)
        high = tl.max(tl.where(histogram > 0, level, 0), axis=0)
        if kind == AUTO_CONTRAST:
            scale = 255.0 / tl.maximum(high - low, 1).to(tl.float64)
            offset = -low.to(tl.float64) * scale
            stretched = tl.minimum(tl.maximum(level.to(tl.float64) * scale + offset, 0.0), 255.0).to(tl.int32)
            table = tl.where(high > low, stretched, level)
        else:
            last = tl.sum(tl.where(level == high, histogram, 0), axis=0)
            step = (pixels - last) // 255
            before = tl.cumsum(histogram, axis=0) - histogram
            flattened = tl.minimum((step // 2 + before) // tl.maximum(step, 1), 255)
            table = tl.where(step > 0, flattened, level)
    tl.store(table_ptr + (n * 3 + channel) * 256 + level, table.to(tl.uint8))
