"""Sine and cosine of angles within a turn, for kernels.

The library's take any angle, for which they keep a table in local memory: stack in every kernel that calls them, with
some of Triton's versions. Here the nearest quarter turn is taken off first, and Taylor's series gives the rest.
"""

from __future__ import annotations

import triton
import triton.language as tl

_TURN = tl.constexpr(6.283185307179586 / 4294967296.0)


@triton.jit
def _near_zero(x, DEGREE: tl.constexpr):
    """Of at most an eighth of a turn; the first term left out is that of DEGREE + 2."""
    square = x * x
    sine, cosine = x * 0.0 + 1.0, x * 0.0 + 1.0
    for n in tl.static_range(DEGREE, 0, -2):
        sine = 1.0 - square * sine * (1.0 / (n * (n + 1)))
        cosine = 1.0 - square * cosine * (1.0 / (n * (n - 1)))
    return x * sine, cosine


@triton.jit
def _turned(sine, cosine, quarters):
    """By so many quarter turns, an integer of at least 0."""
    odd, upper = quarters % 2 == 1, quarters % 4 >= 2
    sine, cosine = tl.where(odd, cosine, sine), tl.where(odd, -sine, cosine)
    return tl.where(upper, -sine, sine), tl.where(upper, -cosine, cosine)


@triton.jit
def sine_and_cosine(angle):
    """Of float64 angles in radians, from two turns back to any forward, to the last bit or two.

    pi / 2 is taken off in two parts, of which the first has zeros to spare.
    """
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    x = (angle - quarters * 1.5707963267341256) - quarters * 6.077100506506192e-11
    sine, cosine = _near_zero(x, 18)
    return _turned(sine, cosine, quarters.to(tl.int32) + 8)


@triton.jit
def sine_and_cosine_of_share(share):
    """Of int64 2**-32ths of a turn, 0 to 2**32 - 1, in float32; quarter turns are taken off exactly."""
    quarters = (share + 536870912) >> 30
    x = (share - (quarters << 30)).to(tl.float32) * _TURN
    sine, cosine = _near_zero(x, 10)
    return _turned(sine, cosine, quarters.to(tl.int32))
