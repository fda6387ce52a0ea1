"""Triton kernels of the guidance loss: sums over programs, and gradients made from the residual E."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import column_sums, rounded
from .triton_parts import load_tokens, positions


@triton.jit(do_not_specialize=["rows", "tiles_per_program", "partial_width", "grad_column"])
def weight_grad_kernel(
    students, residuals, partials, stride_sn, stride_sy, stride_sx, stride_sc,
    rows, tiles_per_program, scale, partial_width, grad_column,
    C: tl.constexpr, D: tl.constexpr, HS: tl.constexpr, WS: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``scale`` times E'T and the sum of E as stored, where the forward kernel does not make them.

    Grid: (channel blocks, D blocks, programs).
    """
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    program = tl.program_id(2)
    partials += program.to(tl.int64) * partial_width + grad_column
    weight_sum, bias_sum = tl.zeros([BC, BD], tl.float32), tl.zeros([BD], tl.float32)
    first = program * tiles_per_program
    for tile in range(first, tl.minimum(first + tiles_per_program, tl.cdiv(rows, BT))):
        first_row = tile * tl.full([], BT, tl.int64)
        live = tl.arange(0, BT) < rows - first_row
        first_sample = first_row // (HS * WS)
        row = tl.arange(0, BT) + (first_row - first_sample * (HS * WS)).to(tl.int32)
        sample, y, x = positions(row, HS, WS, WIDE)
        offsets = sample * stride_sn + y * stride_sy + x * stride_sx
        token = load_tokens(students + first_sample * stride_sn, offsets, live, stride_sc, c, C, WIDE)
        at = residuals + first_row * D + (tl.arange(0, BT)[:, None] * D + d[None, :])
        residual = tl.load(at, mask=live[:, None] & (d < D)[None, :], other=0.0)
        bias_sum += tl.sum(residual.to(tl.float32), 0)
        token, residual = rounded(token, PRECISION), rounded(residual, PRECISION)
        weight_sum = tl.dot(tl.trans(token), residual, weight_sum, input_precision=PRECISION)
    at = partials + (d[None, :] * C + c[:, None])
    tl.store(at, weight_sum * scale, mask=(d < D)[None, :] & (c < C)[:, None])
    if tl.program_id(0) == 0:
        tl.store(partials + D * C + d, bias_sum * scale, mask=d < D)


@triton.jit(do_not_specialize=["loss_programs", "grad_programs", "width"])
def reduce_kernel(
    loss_partials, grad_partials, loss, grads, loss_programs, grad_programs, width,
    LOSSES: tl.constexpr, BL: tl.constexpr, BP: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """Column sums of loss_partials [loss_programs, LOSSES], all added, and of grad_partials [grad_programs, width].

    The first program makes the loss, the others BX gradients each.
    """
    block = tl.program_id(0) - 1
    if block < 0:
        sums = column_sums(loss_partials, tl.arange(0, BL), LOSSES, loss_programs, LOSSES, BP)
        tl.store(loss, tl.sum(sums))
    else:
        column = block * BX + tl.arange(0, BX)
        tl.store(grads + column, column_sums(grad_partials, column, width, grad_programs, width, BP), column < width)


@triton.jit(do_not_specialize=["rows"])
def token_grad_kernel(
    upstream, residuals, weights, out, stride_n, stride_t, stride_c, rows, scale,
    C: tl.constexpr, D: tl.constexpr, LENGTH: tl.constexpr, PREFIX: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = upstream * scale * residual W for all LENGTH tokens of a sample, 0 on the first PREFIX. Grid: (tiles,)."""
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    sample, token = row // LENGTH, row % LENGTH
    source = sample * (LENGTH - PREFIX) + token - PREFIX
    live = (row < rows) & (token >= PREFIX)
    factor = tl.load(upstream).to(tl.float32) * scale
    for start_c in range(0, C, BC):
        c = start_c + tl.arange(0, BC)
        grad = tl.zeros([BT, BC], tl.float32)
        for start_d in range(0, D, BD):
            d = start_d + tl.arange(0, BD)
            mask = live[:, None] & (d < D)[None, :]
            residual = tl.load(residuals + (source[:, None] * D + d[None, :]), mask=mask, other=0.0)
            mask = (d < D)[:, None] & (c < C)[None, :]
            weight = tl.load(weights + (d[:, None] * C + c[None, :]), mask=mask, other=0.0)
            residual, weight = rounded(residual, PRECISION), rounded(weight.to(residual.dtype), PRECISION)
            grad = tl.dot(residual, weight, grad, input_precision=PRECISION)
        at = out + (sample * stride_n + token * stride_t)[:, None] + (c.to(tl.int64) * stride_c)[None, :]
        tl.store(at, (grad * factor).to(out.dtype.element_ty), mask=(row < rows)[:, None] & (c < C)[None, :])
