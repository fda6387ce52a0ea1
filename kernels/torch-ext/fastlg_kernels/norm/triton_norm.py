"""Triton kernels of ``add_layer_norm``: one pass over the tokens forward, and one backward."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(tile, rows, C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """Rows of a tile, which of them there are, channels, mask and offsets [BM, BC]."""
    row = tile * tl.full([], BM, tl.int64) + tl.arange(0, BM)
    live = row < rows
    c = tl.arange(0, BC)
    mask = live[:, None] & (c < C)[None, :]
    return row, live, c, mask, row[:, None] * C + c[None, :]


@triton.jit(do_not_specialize=["rows", "length"])
def forward_kernel(
    x, branch, weight, bias, keep, total, normed, stats, rows, length, eps,
    C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, WITH_KEEP: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles,). ``length``: tokens of a sample. A token's statistics are those of total as it is stored."""
    row, live, c, mask, at = _tile(tl.program_id(0), rows, C, BM, BC)
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if WITH_KEEP:
        factor = tl.load(keep + row // length, mask=live, other=0.0).to(tl.float32)
        joining = tl.load(branch + at, mask=mask & (factor != 0.0)[:, None], other=0.0).to(tl.float32)
        value += factor[:, None] * joining
    else:
        value += tl.load(branch + at, mask=mask, other=0.0).to(tl.float32)
    value = value.to(total.dtype.element_ty)
    tl.store(total + at, value, mask=mask)
    value = value.to(tl.float32)
    mean = tl.sum(value, 1) * (1.0 / C)
    centred = tl.where(mask, value - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) * (1.0 / C) + eps)
    gain = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    out = centred * scale[:, None] * gain[None, :] + shift[None, :]
    tl.store(normed + at, out.to(normed.dtype.element_ty), mask=mask)
    tl.store(stats + row, mean, mask=live)
    tl.store(stats + rows + row, scale, mask=live)


@triton.jit(do_not_specialize=["rows", "length", "tiles_per_program"])
def backward_kernel(
    grad_total, grad_normed, total, stats, weight, keep, grad_x, grad_branch, partials, rows, length, tiles_per_program,
    C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
    WITH_TOTAL: tl.constexpr, WITH_KEEP: tl.constexpr, APART: tl.constexpr, WITH_PARAMS: tl.constexpr,
):  # fmt: skip
    """Grid: (programs,), each of which leaves its sums for weight and bias in a row of partials [programs, 2 C]."""
    program = tl.program_id(0)
    channel = tl.arange(0, BC)
    gain = tl.load(weight + channel, mask=channel < C, other=0.0).to(tl.float32)
    gain_sum, shift_sum = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    first = program * tiles_per_program
    for tile in range(first, tl.minimum(first + tiles_per_program, tl.cdiv(rows, BM))):
        row, live, c, mask, at = _tile(tile, rows, C, BM, BC)
        mean = tl.load(stats + row, mask=live, other=0.0)
        scale = tl.load(stats + rows + row, mask=live, other=0.0)
        value = tl.load(total + at, mask=mask, other=0.0).to(tl.float32)
        upstream = tl.load(grad_normed + at, mask=mask, other=0.0).to(tl.float32)
        normalised = (value - mean[:, None]) * scale[:, None]
        if WITH_PARAMS:
            gain_sum += tl.sum(upstream * normalised, 0)
            shift_sum += tl.sum(upstream, 0)
        scaled = upstream * gain[None, :]
        middle = tl.sum(scaled, 1) * (1.0 / C)
        slope = tl.sum(scaled * normalised, 1) * (1.0 / C)
        grad = (scaled - middle[:, None] - normalised * slope[:, None]) * scale[:, None]
        if WITH_TOTAL:
            grad += tl.load(grad_total + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x + at, grad.to(grad_x.dtype.element_ty), mask=mask)
        if APART:
            if WITH_KEEP:
                factor = tl.load(keep + row // length, mask=live, other=0.0).to(tl.float32)[:, None]
                grad = tl.where(factor == 0.0, 0.0, factor * grad)
            tl.store(grad_branch + at, grad.to(grad_branch.dtype.element_ty), mask=mask)
    if WITH_PARAMS:
        partials += program.to(tl.int64) * (2 * C)
        tl.store(partials + channel, gain_sum, mask=channel < C)
        tl.store(partials + C + channel, shift_sum, mask=channel < C)
