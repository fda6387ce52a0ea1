"""Pieces the guidance kernels share: bilinear weights, teacher maps, token tiles, weight-gradient sums.

Resize weights have integer numerators over 2 * size, so each is one rounding away from exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import rounded


@triton.jit
def source_centre(out, SIZE_IN: tl.constexpr, SIZE_OUT: tl.constexpr):
    """Where output cell ``out`` samples the input (align_corners=False), times 2 * SIZE_OUT."""
    return tl.minimum(tl.maximum((2 * out + 1) * SIZE_IN - SIZE_OUT, 0), 2 * SIZE_OUT * (SIZE_IN - 1))


@triton.jit
def bilinear_weights(out, cell, SIZE_IN: tl.constexpr, SIZE_OUT: tl.constexpr):
    """Bilinear weight of input ``cell`` in output ``out``; 0 for cells outside the input."""
    distance = tl.abs(source_centre(out, SIZE_IN, SIZE_OUT) - 2 * SIZE_OUT * cell)
    return tl.maximum(2 * SIZE_OUT - distance, 0).to(tl.float32) * (1.0 / (2 * SIZE_OUT))


@triton.jit
def taps(out, SIZE_IN: tl.constexpr, SIZE_OUT: tl.constexpr):
    """The two input cells under ``out`` and the weight of the second."""
    centre = source_centre(out, SIZE_IN, SIZE_OUT)
    low = centre // (2 * SIZE_OUT)
    fraction = (centre - low * (2 * SIZE_OUT)).to(tl.float32) * (1.0 / (2 * SIZE_OUT))
    return low, tl.minimum(low + 1, SIZE_IN - 1), fraction


@triton.jit
def resized(
    maps, offsets, y, x, stride_y, stride_x,
    HT: tl.constexpr, WT: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Teacher map at (y, x) of the H x W grid, float32; ``offsets`` lead to (0, 0) of every sample and channel.

    Loads are not masked: callers clamp their indices and drop what is beyond.
    """
    top, bottom, weight_y = taps(y, HT, H)
    left, right, weight_x = taps(x, WT, W)
    top, bottom, left, right = top * stride_y, bottom * stride_y, left * stride_x, right * stride_x
    value = tl.load(maps + (offsets + (top + left))).to(tl.float32)
    if WT < W:
        value += weight_x * (tl.load(maps + (offsets + (top + right))).to(tl.float32) - value)
    if HT < H:
        below = tl.load(maps + (offsets + (bottom + left))).to(tl.float32)
        if WT < W:
            below += weight_x * (tl.load(maps + (offsets + (bottom + right))).to(tl.float32) - below)
        value += weight_y * (below - value)
    return value


@triton.jit
def load_weights(
    weights, d, dtype: tl.constexpr, C: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows ``d`` [BD] of the projection in the tokens' dtype, transposed, one [BC, BD] block per chunk of channels."""
    blocks = ()
    for chunk in tl.static_range(CHUNKS):
        c = chunk * BC + tl.arange(0, BC)
        block = tl.load(weights + (d[None, :] * C + c[:, None]), mask=(d < D)[None, :] & (c < C)[:, None], other=0.0)
        blocks = blocks + (rounded(block.to(dtype), PRECISION),)
    return blocks


@triton.jit
def widened(index, WIDE: tl.constexpr):
    """``index`` in 64 bits where its product with a stride may need them."""
    if WIDE:
        index = index.to(tl.int64)
    return index


@triton.jit
def positions(row, HS: tl.constexpr, WS: tl.constexpr, WIDE: tl.constexpr):
    """Sample, y and x of tokens counted through samples of HS x WS."""
    sample, y, x = row // (HS * WS), row % (HS * WS) // WS, row % WS
    return widened(sample, WIDE), widened(y, WIDE), widened(x, WIDE)


@triton.jit
def load_tokens(students, offsets, live, stride_c, c, C: tl.constexpr, WIDE: tl.constexpr):
    """Channels ``c`` [BC] of the tokens at ``offsets`` [BT]: [BT, BC]."""
    mask = live[:, None] & (c < C)[None, :]
    return tl.load(students + (offsets[:, None] + (widened(c, WIDE) * stride_c)[None, :]), mask=mask, other=0.0)


@triton.jit
def project(
    projected, students, weights, offsets, live, stride_c, d,
    C: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``projected`` [BT, BD] plus the tokens at ``offsets`` times the projection's rows ``d``, chunk by chunk."""
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        token = load_tokens(students, offsets, live, stride_c, c, C, WIDE)
        weight = tl.load(weights + (d[None, :] * C + c[:, None]), mask=(d < D)[None, :] & (c < C)[:, None], other=0.0)
        token, weight = rounded(token, PRECISION), rounded(weight.to(token.dtype), PRECISION)
        projected = tl.dot(token, weight, projected, input_precision=PRECISION)
    return projected


@triton.jit
def zero_sums(BC: tl.constexpr, BD: tl.constexpr, CHUNKS: tl.constexpr):
    sums = ()
    for _ in tl.static_range(CHUNKS):
        sums = sums + (tl.zeros([BC, BD], tl.float32),)
    return sums


@triton.jit
def store_weight_grad(
    partials, sums, bias_sum, d, scale, C: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, CHUNKS: tl.constexpr
):
    """Scaled sums of one program: the weight gradient [D, C], then the bias gradient [D]."""
    for chunk in tl.static_range(CHUNKS):
        c = chunk * BC + tl.arange(0, BC)
        mask = (d < D)[None, :] & (c < C)[:, None]
        tl.store(partials + (d[None, :] * C + c[:, None]), sums[chunk] * scale, mask=mask)
    tl.store(partials + D * C + d, bias_sum * scale, mask=d < D)
