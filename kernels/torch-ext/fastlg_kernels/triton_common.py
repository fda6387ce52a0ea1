"""Pieces that kernels of several operators share: rounding for TF32 products, sums in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """``x`` as one operand of a TF32 product: float32 to the nearest value of ten bits, ties away from zero.

    Tensor cores cut the other thirteen bits off, which makes every product of a chain too small. Infinity and NaN stay
    what they are; other dtypes and other precisions pass through.
    """
    if PRECISION == "tf32" and x.dtype == tl.float32:
        nearest = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        x = tl.where(tl.abs(x) < float("inf"), nearest.to(tl.float32, bitcast=True), x)
    return x


@triton.jit
def column_sums(partials, column, end, programs, width, BP: tl.constexpr):
    """Sums of partials [programs, width] over the programs, for columns below ``end``, always in the same order."""
    row = tl.arange(0, BP)
    total = tl.zeros([column.shape[0]], tl.float32)
    for start in range(0, programs, BP):
        mask = (start + row < programs)[:, None] & (column < end)[None, :]
        at = partials + ((start + row).to(tl.int64)[:, None] * width + column[None, :])
        total += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
    return total


@triton.jit(do_not_specialize=["programs", "width"])
def sum_kernel(partials, sums, programs, width, BP: tl.constexpr, BX: tl.constexpr):
    """Column sums of partials [programs, width] into ``sums``, BX columns to a program."""
    column = tl.program_id(0) * BX + tl.arange(0, BX)
    tl.store(sums + column, column_sums(partials, column, width, programs, width, BP), column < width)
