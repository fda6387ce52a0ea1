"""Random erasing on the GPU: the noise of rng.normals, made where a rectangle is filled."""

from __future__ import annotations

import triton
import triton.language as tl

from ...rng import GAMMA, MIX_1, MIX_2
from .circle import sine_and_cosine_of_share

PIXEL_NOISE, CHANNEL_NOISE, ZERO = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_GAMMA, _MIX_1, _MIX_2 = tl.constexpr(GAMMA), tl.constexpr(MIX_1), tl.constexpr(MIX_2)


@triton.jit
def mixed(z):
    """SplitMix64's finaliser (rng.mix) on uint64."""
    z = (z ^ (z >> 30)) * _MIX_1
    z = (z ^ (z >> 27)) * _MIX_2
    return z ^ (z >> 31)


@triton.jit
def _normal(seed, offset, number):
    """Standard normal number of a seed's sequence from pair `offset` on: rng.normals in float32."""
    pair = (offset + number // 2 + 1).to(tl.uint64)
    bits = mixed(mixed(seed.to(tl.uint64)) + pair * _GAMMA)
    high = ((bits >> 32).to(tl.int64).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    sine, cosine = sine_and_cosine_of_share((bits & 0xFFFFFFFF).to(tl.int64))
    radius = tl.sqrt(tl.log(high) * -2.0)
    return radius * tl.where(number % 2 == 0, cosine, sine)


@triton.jit
def covered(rectangle_ptr, n, row, column, RECTANGLES: tl.constexpr):
    """Whether a pixel lies in any of the sample's rectangles."""
    found = row < 0
    for slot in tl.static_range(RECTANGLES):
        box = rectangle_ptr + (n * RECTANGLES + slot) * 4
        top, left = tl.load(box).to(tl.int32), tl.load(box + 1).to(tl.int32)
        height, width = tl.load(box + 2).to(tl.int32), tl.load(box + 3).to(tl.int32)
        found = found | ((row >= top) & (row < top + height) & (column >= left) & (column < left + width))
    return found


@triton.jit
def erased(value, rectangle_ptr, seed, n, row, column, channel, RECTANGLES: tl.constexpr, MODE: tl.constexpr,
            NOISE_OFFSET: tl.constexpr):  # fmt: skip
    """`value` with the sample's rectangles filled."""
    for slot in tl.static_range(RECTANGLES):
        box = rectangle_ptr + (n * RECTANGLES + slot) * 4
        top, left = tl.load(box).to(tl.int32), tl.load(box + 1).to(tl.int32)
        height, width = tl.load(box + 2).to(tl.int32), tl.load(box + 3).to(tl.int32)
        inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
        if tl.max(inside.to(tl.int32), axis=0) > 0:
            if MODE == ZERO:
                value = tl.where(inside, 0.0, value)
            else:
                number = channel + row * 0
                if MODE == PIXEL_NOISE:
                    number = (channel * height + row - top) * width + column - left
                value = tl.where(inside, _normal(seed, NOISE_OFFSET * (slot + 1), number.to(tl.int64)), value)
    return value


@triton.jit
def erase_kernel(
    image_ptr, rectangle_ptr, seed_ptr, channels, image_width, pixels, RECTANGLES: tl.constexpr, MODE: tl.constexpr,
    NOISE_OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fills rectangles of contiguous images [N, C, H, W] in place; blocks outside all of them leave at once."""
    blocks = tl.cdiv(pixels, BLOCK)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    row, column = pixel // image_width, pixel % image_width
    touched = covered(rectangle_ptr, n, row, column, RECTANGLES) & (pixel < pixels)
    if tl.max(touched.to(tl.int32), axis=0) == 0:
        return
    seed = tl.load(seed_ptr + n)
    for channel in range(channels):
        value = tl.zeros([BLOCK], dtype=tl.float32)
        value = erased(value, rectangle_ptr, seed, n, row, column, channel, RECTANGLES, MODE, NOISE_OFFSET)
        place = image_ptr + (n * channels + channel) * pixels + pixel
        tl.store(place, value.to(image_ptr.dtype.element_ty), mask=touched)
