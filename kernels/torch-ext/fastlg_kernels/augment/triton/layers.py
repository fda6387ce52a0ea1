"""One layer of augmentation operations on the GPU, and the finished views: normalised, erased, subsampled."""

from __future__ import annotations

import triton
import triton.language as tl

from .circle import sine_and_cosine
from .erase import erased
from .tables import (
    BLUR,
    COLOR,
    DESATURATE,
    NOTHING,
    ROTATE,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    TABLE,
    TRANSLATE_X,
    TRANSLATE_Y,
    blend,
    cut,
    load_pixel,
    luma,
    source_of,
)

# Where a pass writes: the sample's next scratch buffer, uint8 [N, H, W, 3], or the normalised [N, 3, H, W].
TO_SCRATCH, TO_BYTES, TO_VIEW = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def sharpened(source, row, column, channel, own, factor, height, width, mirrored, mask):
    total = own * 4
    for down in tl.static_range(-1, 2):
        for across in tl.static_range(-1, 2):
            near_row = tl.minimum(tl.maximum(row + down, 0), height - 1)
            near_column = tl.minimum(tl.maximum(column + across, 0), width - 1)
            total += load_pixel(source, near_row, near_column, channel, width, mirrored, mask)
    border = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return tl.where(border, own, blend((2 * total + 13) // 26, own, factor))


@triton.jit(do_not_specialize=["height", "width"])
def maps_kernel(kind_ptr, value_ptr, map_ptr, height, width):
    """Coefficients a..f of every geometric operation's source position, float64 [N * layers, 6].

    x = a * (column + 0.5) + b * (row + 0.5) + c, and y with d, e, f likewise.
    """
    place = tl.program_id(0).to(tl.int64)
    kind, value = tl.load(kind_ptr + place), tl.load(value_ptr + place)
    if kind < ROTATE:
        return
    zero = value * 0.0
    a, b, c, d, e, f = zero + 1.0, zero, zero, zero, zero + 1.0, zero
    if kind == SHEAR_X:
        b = value
    if kind == SHEAR_Y:
        d = value
    if kind == TRANSLATE_X:
        c = value * width.to(tl.float64)
    if kind == TRANSLATE_Y:
        f = value * height.to(tl.float64)
    if kind == ROTATE:
        angle = -(value - tl.floor(value / 360.0) * 360.0) * 0.017453292519943295
        # Pillow rounds to 15 digits, so that quarter turns hit pixel centres.
        sine, cosine = sine_and_cosine(angle)
        a = tl.floor(cosine * 1e15 + 0.5) / 1e15
        b = tl.floor(sine * 1e15 + 0.5) / 1e15
        d, e = -b, a
        x, y = width.to(tl.float64) * 0.5, height.to(tl.float64) * 0.5
        c, f = a * -x + b * -y + x, d * -x + e * -y + y
    tl.store(map_ptr + place * 6, a)
    tl.store(map_ptr + place * 6 + 1, b)
    tl.store(map_ptr + place * 6 + 2, c)
    tl.store(map_ptr + place * 6 + 3, d)
    tl.store(map_ptr + place * 6 + 4, e)
    tl.store(map_ptr + place * 6 + 5, f)


@triton.jit
def _weights(fraction, CUBIC: tl.constexpr):
    """Weights of the taps around the point's own pixel; without CUBIC only the second is used."""
    square, cube = fraction * fraction, fraction * fraction * fraction
    if CUBIC:
        first, second, third = 2.0 * square - fraction - cube, fraction + square - cube, cube - square
    else:
        first, second, third = fraction, fraction, fraction
    return first.to(tl.float32), second.to(tl.float32), third.to(tl.float32)


@triton.jit
def _line(source, row, left, channel, first, second, third, width, mirrored, mask, CUBIC: tl.constexpr):
    """One row's interpolation: the point's own pixel plus weighted differences to it, exact where taps are equal."""
    own_column, right = tl.minimum(tl.maximum(left, 0), width - 1), tl.minimum(left + 1, width - 1)
    own = load_pixel(source, row, own_column, channel, width, mirrored, mask).to(tl.float32)
    after = load_pixel(source, row, right, channel, width, mirrored, mask).to(tl.float32)
    if CUBIC:
        before = tl.minimum(tl.maximum(left - 1, 0), width - 1)
        far = tl.minimum(left + 2, width - 1)
        value = own + (load_pixel(source, row, before, channel, width, mirrored, mask).to(tl.float32) - own) * first
        value += (after - own) * second
        return value + (load_pixel(source, row, far, channel, width, mirrored, mask).to(tl.float32) - own) * third
    return own + (after - own) * second


@triton.jit
def sampled(source, x, y, channel, fill, height, width, mirrored, mask, CUBIC: tl.constexpr):
    """Interpolates at the positions x, y (float64; the first pixel's centre is at 0.5), or fills outside."""
    inside = (x >= 0.0) & (x < width) & (y >= 0.0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = tl.floor(x), tl.floor(y)
    x1, x2, x3 = _weights(x - left, CUBIC)
    y1, y2, y3 = _weights(y - top, CUBIC)
    mask = mask & inside
    left, top = left.to(tl.int32), top.to(tl.int32)
    row, below = tl.minimum(tl.maximum(top, 0), height - 1), tl.minimum(tl.maximum(top + 1, 0), height - 1)
    own = _line(source, row, left, channel, x1, x2, x3, width, mirrored, mask, CUBIC)
    after = _line(source, below, left, channel, x1, x2, x3, width, mirrored, mask, CUBIC)
    value = own
    if CUBIC:
        above, far = tl.minimum(tl.maximum(top - 1, 0), height - 1), tl.minimum(tl.maximum(top + 2, 0), height - 1)
        value += (_line(source, above, left, channel, x1, x2, x3, width, mirrored, mask, CUBIC) - own) * y1
        value += (after - own) * y2
        value += (_line(source, far, left, channel, x1, x2, x3, width, mirrored, mask, CUBIC) - own) * y3
    else:
        value += (after - own) * y2
    return tl.where(inside, cut(value), fill)


@triton.jit(do_not_specialize=["height", "width"])
def layer_kernel(
    input_ptr, a_ptr, b_ptr, flip_ptr, applied_ptr, kind_ptr, value_ptr, table_ptr, map_ptr, blurred_ptr, out_ptr,
    teacher_ptr, norm_ptr, rectangle_ptr, seed_ptr, layers, layer, height, width, side, fill_red, fill_green, fill_blue,
    GEOMETRIC: tl.constexpr, BLURS: tl.constexpr, TARGET: tl.constexpr, CUBIC: tl.constexpr, STEP: tl.constexpr,
    RECTANGLES: tl.constexpr, MODE: tl.constexpr, NOISE_OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Applies every sample's operation of this layer; the last layer writes all samples to their target.

    A layer is two launches, one for the geometric operations and one for the others, so that the others' registers are
    not those of 16 taps. applied, kind, value: [N, layers], operations before this layer (int32), what this one is
    (int32), its argument (float64). norm: float32 [3, 256], the normalised value of every byte. STEP > 0 writes the
    teacher's view, every STEP-th pixel from STEP // 2 on.
    """
    pixels = height * width
    blocks = tl.cdiv(pixels, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    kind, before = tl.load(kind_ptr + n * layers + layer), tl.load(applied_ptr + n * layers + layer)
    if (kind >= ROTATE) != GEOMETRIC:
        return
    if TARGET == TO_SCRATCH:  # noqa: SIM102 - the outer test is resolved when the kernel is compiled
        if kind == NOTHING:
            return
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < pixels
    row, column = pixel // width, pixel % width
    source = source_of(input_ptr, a_ptr, b_ptr, before, n, pixels * 3)
    # Scratch holds images that were already turned.
    mirrored = (tl.load(flip_ptr + n) != 0) & (before == 0)
    if GEOMETRIC:
        terms = map_ptr + (n * layers + layer) * 6
        x, y = column.to(tl.float64) + 0.5, row.to(tl.float64) + 0.5
        source_x = tl.load(terms) * x + tl.load(terms + 1) * y + tl.load(terms + 2)
        source_y = tl.load(terms + 3) * x + tl.load(terms + 4) * y + tl.load(terms + 5)
        red = sampled(source, source_x, source_y, 0, fill_red, height, width, mirrored, mask, CUBIC)
        green = sampled(source, source_x, source_y, 1, fill_green, height, width, mirrored, mask, CUBIC)
        blue = sampled(source, source_x, source_y, 2, fill_blue, height, width, mirrored, mask, CUBIC)
    else:
        if BLURS:
            mirrored = mirrored & (kind != BLUR)
            if kind == BLUR:
                source = blurred_ptr + n * pixels * 3
        red = load_pixel(source, row, column, 0, width, mirrored, mask)
        green = load_pixel(source, row, column, 1, width, mirrored, mask)
        blue = load_pixel(source, row, column, 2, width, mirrored, mask)
        factor = tl.load(value_ptr + n * layers + layer).to(tl.float32)
        if kind == TABLE:
            table = table_ptr + n * 768
            red = tl.load(table + red).to(tl.int32)
            green = tl.load(table + 256 + green).to(tl.int32)
            blue = tl.load(table + 512 + blue).to(tl.int32)
        if kind == DESATURATE:
            factor = tl.minimum(tl.maximum(1.0 - tl.load(value_ptr + n * layers + layer), 0.0), 1.0).to(tl.float32)
        if (kind == COLOR) | (kind == DESATURATE):
            grey = luma(red, green, blue)
            red, green, blue = blend(grey, red, factor), blend(grey, green, factor), blend(grey, blue, factor)
        if kind == SHARPNESS:
            red = sharpened(source, row, column, 0, red, factor, height, width, mirrored, mask)
            green = sharpened(source, row, column, 1, green, factor, height, width, mirrored, mask)
            blue = sharpened(source, row, column, 2, blue, factor, height, width, mirrored, mask)
    if TARGET == TO_VIEW:
        seed = tl.load(seed_ptr + n)
        out = out_ptr + n * 3 * pixels + pixel
        for channel in tl.static_range(3):
            byte = red if channel == 0 else green if channel == 1 else blue
            number = tl.load(norm_ptr + channel * 256 + byte)
            number = erased(number, rectangle_ptr, seed, n, row, column, channel, RECTANGLES, MODE, NOISE_OFFSET)
            number = number.to(out_ptr.dtype.element_ty)
            tl.store(out + channel * pixels, number, mask=mask)
            if STEP > 0:
                kept = mask & (row % STEP == STEP // 2) & (column % STEP == STEP // 2)
                place = ((n * 3 + channel) * side + row // STEP) * side + column // STEP
                tl.store(teacher_ptr + place, number, mask=kept)
    else:
        out = out_ptr
        if TARGET == TO_SCRATCH:
            out = a_ptr
            if before % 2 == 1:
                out = b_ptr
        out += (n * pixels + pixel) * 3
        tl.store(out, red.to(tl.uint8), mask=mask)
        tl.store(out + 1, green.to(tl.uint8), mask=mask)
        tl.store(out + 2, blue.to(tl.uint8), mask=mask)
